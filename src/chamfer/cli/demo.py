"""`chamfer demo`: the shipped corpus from nothing to a ranked answer."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import printing
from chamfer.core.errors import NotFound

COLLECTION = "fairytaleqa"
QUESTION = "Why did the fox lose his tail?"
# Test questions of the corpus that the console offers.
EXAMPLES = (
    "Why did Harold want to buy a love-potion from Snorro?",
    "What did the wizard promise to the nurse and princess?",
    "Where could John Nicholas see the trolls?",
    "What did the fox do while the wolf was thinking?",
    "How did the monkey feel when he was asked about his liver?",
)


def demo_corpus() -> Path:
    """The folder of the shipped corpus, in BEIR's layout."""
    return Path(str(files("chamfer"))) / "demo" / COLLECTION


def _demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the demo collection is built.")] = Path("var/demo"),
    port: Annotated[int | None, typer.Option(help="Port to serve on.")] = None,
    once: Annotated[str | None, typer.Option(help="Answer this question and exit.")] = None,
    build_only: Annotated[bool, typer.Option(help="Build the collection and exit.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Build the demo collection if it is not there, then serve it (or answer once)."""
    from chamfer.settings import load_settings

    target = directory / COLLECTION
    if not (target / "CURRENT").exists():
        _build(target, config)
    if build_only:
        return
    if once is not None:
        from chamfer.api import open as open_searcher

        with open_searcher(target, config=config) as searcher:
            printing.show_hits(searcher.search(once))
        return
    from chamfer.cli.searching import run_service

    settings = load_settings(config)
    service = replace(settings.service, examples={COLLECTION: EXAMPLES, **settings.service.examples})
    _announce(service.host, port or service.port)
    run_service(replace(settings, service=service), {COLLECTION: target}, None, port)


def _build(target: Path, config: Path | None) -> None:
    from chamfer.api import build

    corpus = demo_corpus()
    if not corpus.is_dir():
        raise NotFound(f"the demo corpus {corpus} is missing: the package is not whole, install it again")
    printing.messages.print("Building the demo collection: 4,095 passages of fairy tales, a few minutes on two cores")
    with printing.build_progress() as show:
        build(corpus, target, config=config, progress=show).close()


def _announce(host: str, port: int) -> None:
    address = f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1', '::') else host}:{port}"
    body = f'{{"query": "{QUESTION}"}}'
    printing.messages.print(f"\nConsole and API: [bold]{address}[/bold]   (ready in a few seconds, Ctrl-C stops)")
    printing.messages.print(
        f"curl -s {address}/v1/collections/{COLLECTION}/search -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
    )


def register(app: typer.Typer) -> None:
    app.command("demo")(_demo)
