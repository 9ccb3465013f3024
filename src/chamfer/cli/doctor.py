"""`chamfer doctor`: whether models behave as they are known to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.core.errors import InvalidInput

doctor = typer.Typer(no_args_is_help=True, help="Check that models behave as they are known to.")


@doctor.callback()
def _group() -> None:
    pass


@doctor.command("rerank")
def _rerank(
    name: Annotated[str, typer.Argument(help="A reranker, as in models.rerankers.")],
    reference: Annotated[
        Path | None, typer.Option(help="Reference pairs; default: published ones of this model.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the scores of this runtime as a reference instead.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Compare a reranker's scores with reference pairs: template, activation, dtype. Exit status 1 if they differ."""
    from chamfer.api import reranker_of
    from chamfer.models.rerankers.reference_scores import PUBLISHED, read_reference, write_reference
    from chamfer.models.rerankers.reference_scores import compare as compare_scores
    from chamfer.models.rerankers.reference_scores import record as record_scores
    from chamfer.settings import load_settings

    known = PUBLISHED.get(name.removeprefix("cross_encoder:"))
    if record is None and reference is None and known is None:
        raise InvalidInput(
            f"no published scores of {name!r} are stored (there are some of {', '.join(PUBLISHED)}); "
            "pass --reference FILE, which --record FILE writes where the model is known to be right"
        )
    expected = read_reference(reference) if reference else known
    reranker = reranker_of(load_settings(config), name)
    if record is not None or expected is None:
        found = record_scores(reranker, source=f"recorded from {name}")
        write_reference(found, Path(str(record)))
        typer.echo(f"{len(found.pairs)} pairs recorded in {record}")
        return
    finding = compare_scores(reranker, expected)
    for pair, score in zip(expected.pairs, finding.scores, strict=True):
        typer.echo(f"{score:12.5f}  expected {pair.score:12.5f}  {pair.query[:40]!r} | {pair.document[:40]!r}")
    typer.echo(f"largest difference {finding.largest_difference:.3g}, tolerance {expected.tolerance:g}")
    if not finding.agrees:
        typer.secho(f"differs from {expected.source}: {finding.cause}", err=True, fg="red")
        raise typer.Exit(1)
    typer.echo("agrees")


def register(app: typer.Typer) -> None:
    app.add_typer(doctor, name="doctor")
