"""`chamfer serve`: collections and rerankers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chamfer.cli.options import ConfigOption
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.settings import Settings


def _serve(
    collections: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]DIR...", help="Collections to serve, in addition to those of the settings."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind. Default: service.host of the settings.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind. Default: service.port of the settings.")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve collections over HTTP, with the console at /."""
    from chamfer.settings import load_settings

    settings = load_settings(config)
    served = dict(settings.collections)
    for argument in collections or []:
        name, _, folder = argument.rpartition("=")
        served[name or Path(folder).resolve().name] = Path(folder)
    if not served and not settings.models.rerankers:
        raise InvalidInput(
            "nothing to serve; pass the directory of a collection, or set [collections] or models.rerankers in the "
            "settings file"
        )
    run_service(settings, served, host, port)


def run_service(settings: Settings, served: dict[str, Path], host: str | None, port: int | None) -> None:
    """Runs uvicorn until it receives a stop signal; requests in flight are completed first."""
    from dataclasses import replace
    from functools import partial

    import uvicorn

    from chamfer.api import pipeline_loader
    from chamfer.service.http.app import create_app

    config = replace(
        settings.service, host=host or settings.service.host, port=port if port is not None else settings.service.port
    )
    loader = pipeline_loader(settings)
    rerankers = {name: partial(loader.reranker, name) for name in settings.models.rerankers}
    app = create_app(served, config, loader, rerankers=rerankers)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(config.drain_seconds),
    )


def register(app: typer.Typer) -> None:
    app.command("serve")(_serve)
