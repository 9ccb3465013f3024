"""`chamfer demo`: builds a collection of the shipped corpus and serves it."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import ConfigOption
from chamfer.core.errors import NotFound

COLLECTION = "fairytaleqa"
EXAMPLE_QUERY = "Why did the fox lose his tail?"
# Queries of the corpus's test split that the console offers.
EXAMPLES = (
    "Why did Harold want to buy a love-potion from Snorro?",
    "What did the wizard promise to the nurse and princess?",
    "Where could John Nicholas see the trolls?",
    "What did the fox do while the wolf was thinking?",
    "How did the monkey feel when he was asked about his liver?",
)


def demo_corpus() -> Path:
    """Folder of the shipped corpus, in BEIR layout."""
    return Path(str(files("chamfer"))) / "demo" / COLLECTION


def _demo(
    directory: Annotated[Path, typer.Option("--dir", help="Directory in which the demo collection is built.")] = Path(
        "var/demo"
    ),
    port: Annotated[int | None, typer.Option(help="Port to bind. Default: service.port of the settings.")] = None,
    once: Annotated[str | None, typer.Option(help="Answer this query and exit.")] = None,
    build_only: Annotated[bool, typer.Option(help="Build the collection and exit.")] = False,
    config: ConfigOption = None,
) -> None:
    """Build the demo collection if it does not exist yet, then serve it (or answer one query)."""
    from chamfer.settings import load_settings

    target = directory / COLLECTION
    if not (target / "CURRENT").exists():
        _build(target, config)
    if build_only:
        return
    if once is not None:
        from chamfer import api

        with api.open(target, config=config) as searcher:
            terminal.show_hits(searcher.search(once))
        return
    from chamfer.cli.serve import run_service

    settings = load_settings(config)
    service = replace(settings.service, examples={COLLECTION: EXAMPLES, **settings.service.examples})
    _announce(service.host, port or service.port)
    run_service(replace(settings, service=service), {COLLECTION: target}, None, port)


def _build(target: Path, config: Path | None) -> None:
    from chamfer.api import build

    corpus = demo_corpus()
    if not corpus.is_dir():
        raise NotFound(f"the demo corpus {corpus} is missing; the installation is incomplete: install chamfer again")
    terminal.messages.print(
        "Building the demo collection: 4,095 passages of fairy tales, which takes a few minutes on two cores"
    )
    with terminal.build_progress() as show:
        build(corpus, target, config=config, progress=show).close()


def _announce(host: str, port: int) -> None:
    address = f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1', '::') else host}:{port}"
    body = f'{{"query": "{EXAMPLE_QUERY}"}}'
    terminal.messages.print(f"\nConsole and API: [bold]{address}[/bold]   (ready in a few seconds, Ctrl-C stops)")
    terminal.messages.print(
        f"curl -s {address}/v1/collections/{COLLECTION}/search -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
    )


def register(app: typer.Typer) -> None:
    app.command("demo")(_demo)
