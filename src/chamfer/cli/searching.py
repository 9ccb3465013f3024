"""`chamfer search`, `serve` and `health`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chamfer.cli import printing
from chamfer.core.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from chamfer.core.types import Hit
    from chamfer.settings import Settings

ConfigOption = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]


def _search(
    collection: Annotated[Path, typer.Argument(metavar="DIR", help="A collection.")],
    query: Annotated[str, typer.Argument(help="The question.")],
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
    plan: Annotated[str, typer.Option(help="A preset or a plan from the settings.")] = "balanced",
    where: Annotated[str | None, typer.Option("--filter", help="Condition on metadata, as JSON.")] = None,
    explain: Annotated[bool, typer.Option(help="Show the score of each stage (with --json).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    config: ConfigOption = None,
) -> None:
    """Search a collection once, without a server."""
    from chamfer.api import open as open_searcher

    condition = _condition(where)
    with open_searcher(collection, config=config) as searcher:
        result = searcher.search_many([query], k, plan=plan, filter=condition, explain=explain)[0]
    if as_json:
        typer.echo(json.dumps([hit_as_json(hit) for hit in result.hits], ensure_ascii=False, indent=1))
    else:
        printing.show_hits(result.hits)
        stages = "  ".join(f"{stage} {ms:.1f}" for stage, ms in result.timings_ms.items())
        printing.messages.print(f"{len(result.hits)} hits from {result.snapshot}; ms: {stages}", style="dim")


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """A hit as plain values."""
    return {
        "rank": hit.rank,
        "doc_id": hit.doc_id,
        "score": hit.score,
        "title": hit.document.title,
        "text": hit.document.text,
        "metadata": dict(hit.document.metadata),
        "explanation": hit.explanation,
    }


def _serve(
    collections: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]DIR...", help="Collections to serve.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; default from the settings.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default from the settings.")] = None,
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
            "nothing to serve: name a directory, or fill [collections] or models.rerankers in the settings file"
        )
    run_service(settings, served, host, port)


def run_service(settings: Settings, served: dict[str, Path], host: str | None, port: int | None) -> None:
    """Runs uvicorn until it is told to stop; running requests are finished first."""
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


def _health(
    port: Annotated[int, typer.Option(help="Port of the service on this machine.")] = 8000,
) -> None:
    """Exit 0 if the service on this machine is ready."""
    import httpx

    try:
        status = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code
    except httpx.HTTPError as error:
        raise Unavailable(f"nothing answers on port {port}: {error}") from error
    if status != 200:
        raise Unavailable(f"the service on port {port} is not ready (status {status})")
    typer.echo("ready")


def _condition(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f'--filter is not JSON ({error}); expected for example {{"field": "year", "gte": 1990}}'
        ) from error


def register(app: typer.Typer) -> None:
    app.command("search")(_search)
    app.command("serve")(_serve)
    app.command("health", hidden=True)(_health)
