"""`chamfer train`: a recipe to a model. `chamfer soup`: several models to their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import printing
from chamfer.core.errors import InvalidInput


def _train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (TOML).")],
    work: Annotated[
        Path | None, typer.Option(help="Where checkpoints are kept; default: the model's folder with .work after it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. fit.batch=64.")
    ] = None,
) -> None:
    """Train a model. Interrupted or killed, it goes on where it was when run again."""
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
        raise InvalidInput(f"--set {text!r} has no '='; expected KEY=VALUE, for example fit.batch=64")
    return key, value


def _soup(
    models: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that chamfer train wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the mean.")],
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="How much each counts; default: all alike.")] = "",
) -> None:
    """Average trained models of the same kind, backbone and head: checkpoints, seeds, or mixes of data."""
    from chamfer.models.training.loop.model_soup import soup

    soup(models, out, [_weight(text) for text in weights.split(",")] if weights else [])
    printing.messages.print(f"{out}: the mean of {len(models)} models")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"--weights has {text!r}, expected numbers with commas, for example 3,1") from None


def register(app: typer.Typer) -> None:
    app.command("train")(_train)
    app.command("soup")(_soup)
