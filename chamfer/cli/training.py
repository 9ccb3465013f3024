"""`chamfer train`: a recipe to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import printing
from chamfer.errors import InvalidInput


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
    from chamfer.settings import load_recipe
    from models.training.jobs import run

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


def register(app: typer.Typer) -> None:
    app.command("train")(_train)
