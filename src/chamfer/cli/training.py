"""`chamfer train` trains a recipe; `chamfer soup` averages several models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import printing
from chamfer.core.errors import InvalidInput


def _train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (TOML).")],
    work: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoints; default: the model's folder with .work appended.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. fit.batch_size=64.")
    ] = None,
) -> None:
    """Train a model. Run the same command again to resume an interrupted training."""
    from chamfer.models.training.jobs.registry import run
    from chamfer.settings import load_recipe

    loaded = load_recipe(recipe, dict(_pair(text) for text in set_ or []))
    with printing.training_progress() as show:
        fitted = run(loaded, work or loaded.out.with_name(loaded.out.name + ".work"), show)
    rows = [
        [source, name, f"{fitted.before[source][name]:.4f}", f"{value:.4f}"]
        for source, measures in fitted.after.items()
        for name, value in measures.items()
    ]
    if rows:
        printing.table(str(loaded.out), ["source", "measure", "before", "after"], rows)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"--set {text!r} has no '=', expected KEY=VALUE, for example fit.batch_size=64")
    return key, value


def _soup(
    models: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that chamfer train wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the averaged model.")],
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Weight of each model; default: equal.")] = "",
) -> None:
    """Average trained models of the same kind, backbone and head, such as runs with other seeds or data."""
    from chamfer.models.training.loop.model_soup import soup

    soup(models, out, [_weight(text) for text in weights.split(",")] if weights else [])
    printing.messages.print(f"{out}: the mean of {len(models)} models")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"--weights has {text!r}, expected numbers separated by commas, for example 3,1") from None


def register(app: typer.Typer) -> None:
    app.command("train")(_train)
    app.command("soup")(_soup)
