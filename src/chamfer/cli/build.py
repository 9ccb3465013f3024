"""`chamfer build`: builds a collection from a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import (
    ConfigOption,
    CorpusArgument,
    EncoderOption,
    OnErrorOption,
    RejectsOption,
    stop_or_skip,
)

if TYPE_CHECKING:
    from chamfer.indexing.building.builder import BuildReport


def _build(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Directory of the new collection.")],
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated: dense,multivector,fde,lemur,lexical,sparse,cur.")
    ] = None,
    encoder: EncoderOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    on_error: OnErrorOption = "stop",
    rejects: RejectsOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an existing collection with a new snapshot.")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="BEIR folder or JSONL: queries that measure the recall floor, and the anchor queries of cur."
        ),
    ] = None,
    recall_floor: Annotated[
        float | None,
        typer.Option(
            help="Minimum share of the exact MaxSim top 10 that fde and lemur must find; 0 disables the check."
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Build a collection. After an interruption, run the same command again to resume."""
    from chamfer.api import build_report
    from chamfer.indexing.building.builder import BuildRun
    from chamfer.indexing.building.corpus import Rejects, read_queries

    skipped = Rejects(rejects or out.with_name(out.name + ".rejects.ndjson"))
    overrides = {"models.encoder": encoder, "models.device.device": device, "build.channels": channels}
    overrides["build.floor.recall"] = None if recall_floor is None else str(recall_floor)
    training_queries = () if queries is None else tuple(read_queries(queries))
    with terminal.build_progress() as show:
        report = build_report(
            corpus,
            out,
            config=config,
            overrides={key: value for key, value in overrides.items() if value is not None},
            on_error=stop_or_skip(on_error),
            rejects=skipped,
            replace=replace,
            run=BuildRun(progress=show, queries=training_queries, notice=terminal.messages.print),
        )
    _show(report, out)
    terminal.warn_of_rejects(skipped)


def _show(report: BuildReport, out: Path) -> None:
    bytes_each = report.n_bytes / max(report.documents, 1)
    reused = f", {report.reused_blocks} of {report.blocks} blocks reused from an earlier attempt"
    terminal.messages.print(
        f"{out} {report.snapshot}: {report.documents:,} documents, {terminal.readable_bytes(report.n_bytes)} "
        f"({bytes_each:,.0f} bytes each), {report.seconds:.0f} s" + (reused if report.reused_blocks else "")
    )
    if report.truncated:
        terminal.messages.print(
            f"{report.truncated:,} documents are longer than the encoder's limit; text past the limit was not encoded"
        )
    for channel, recall in report.recall.items():
        terminal.messages.print(f"{channel}: {terminal.recall_sentence(recall, report.documents)}")


def register(app: typer.Typer) -> None:
    app.command("build")(_build)
