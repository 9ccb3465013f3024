"""`chamfer doctor`: checks that models reproduce known scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli.options import ConfigOption
from chamfer.core.errors import InvalidInput

doctor = typer.Typer(no_args_is_help=True, help="Check that models reproduce known scores.")


@doctor.callback()
def _group() -> None:
    pass


@doctor.command("rerank")
def _rerank(
    name: Annotated[str, typer.Argument(help="Reranker, named as in models.rerankers.")],
    reference: Annotated[
        Path | None, typer.Option(help="File of reference scores. Default: the published scores of this model.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the scores of this runtime to a reference file instead of comparing.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Compare a reranker's scores with reference scores, to find a wrong template, activation or dtype.

    Exit status 1 if the scores differ by more than the tolerance.
    """
    from chamfer.api import reranker_of
    from chamfer.models.rerankers import reference_scores
    from chamfer.settings import load_settings

    published = reference_scores.PUBLISHED.get(name.removeprefix("cross_encoder:"))
    if record is None and reference is None and published is None:
        raise InvalidInput(
            f"there are no published scores of {name!r} (only of {', '.join(reference_scores.PUBLISHED)}); "
            "pass --reference FILE, a file that --record FILE writes on a machine where the model is known to be right"
        )
    expected = reference_scores.read_reference(reference) if reference else published
    reranker = reranker_of(load_settings(config), name)
    if record is not None or expected is None:
        recorded = reference_scores.record(reranker, source=f"recorded from {name}")
        reference_scores.write_reference(recorded, Path(str(record)))
        typer.echo(f"{len(recorded.pairs)} pairs recorded in {record}")
        return
    comparison = reference_scores.compare(reranker, expected)
    for pair, score in zip(expected.pairs, comparison.scores, strict=True):
        typer.echo(f"{score:12.5f}  expected {pair.score:12.5f}  {pair.query[:40]!r} | {pair.document[:40]!r}")
    typer.echo(f"largest difference {comparison.largest_difference:.3g}, tolerance {expected.tolerance:g}")
    if not comparison.agrees:
        typer.secho(f"differs from {expected.source}: {comparison.cause}", err=True, fg="red")
        raise typer.Exit(1)
    typer.echo("agrees")


def register(app: typer.Typer) -> None:
    app.add_typer(doctor, name="doctor")
