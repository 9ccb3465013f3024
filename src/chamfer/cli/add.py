"""`chamfer add`: adds or replaces documents of a collection."""

from __future__ import annotations

from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import (
    CollectionArgument,
    ConfigOption,
    CorpusArgument,
    OnErrorOption,
    RejectsOption,
    stop_or_skip,
)


def _add(
    collection: CollectionArgument,
    corpus: CorpusArgument,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace documents whose id is already in the collection (upsert).")
    ] = False,
    on_error: OnErrorOption = "stop",
    rejects: RejectsOption = None,
    config: ConfigOption = None,
) -> None:
    """Add documents, encoded as the rest of the collection. With --replace, existing ids are replaced (upsert)."""
    from chamfer.api import encoder_of, kept_reranker
    from chamfer.indexing.building.builder import BuildRun
    from chamfer.indexing.building.corpus import Rejects, read_corpus
    from chamfer.indexing.building.updates import add
    from chamfer.indexing.collection.snapshot import open_snapshot
    from chamfer.models.backends.config import decide
    from chamfer.settings import load_settings

    skipped = Rejects(rejects or collection.with_name(collection.name + ".rejects.ndjson"))
    encoder, settings = encoder_of(collection, config=config), load_settings(config)
    reranker = kept_reranker(open_snapshot(collection).families(), settings)
    device = "cpu" if encoder is None else decide(settings.models.device).device
    with terminal.build_progress() as show:
        report = add(
            collection,
            read_corpus(corpus, on_error=stop_or_skip(on_error), rejects=skipped),
            encoder=encoder,
            on_existing="replace" if replace else "error",
            run=BuildRun(progress=show, device=device, reranker=reranker, notice=terminal.messages.print),
        )
    terminal.messages.print(
        f"{report.snapshot}: {report.added:,} documents added, {report.deleted:,} of which replaced existing ones"
    )
    terminal.warn_of_rejects(skipped)


def register(app: typer.Typer) -> None:
    app.command("add")(_add)
