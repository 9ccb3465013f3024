"""`chamfer train`: trains a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.core.errors import InvalidInput


def _train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (TOML).")],
    work: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoints. Default: the model's directory plus .work.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. fit.batch_size=64."),
    ] = None,
) -> None:
    """Train a model. After an interruption, run the same command again to resume."""
    from chamfer.models.training.jobs.registry import run
    from chamfer.settings import load_recipe

    loaded = load_recipe(recipe, dict(_key_and_value(text) for text in set_ or []))
    with terminal.training_progress() as show:
        fitted = run(loaded, work or loaded.out.with_name(loaded.out.name + ".work"), show)
    rows = [
        [source, name, f"{fitted.before[source][name]:.4f}", f"{value:.4f}"]
        for source, measures in fitted.after.items()
        for name, value in measures.items()
    ]
    if rows:
        terminal.table(str(loaded.out), ["source", "measure", "before", "after"], rows)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"--set {text!r} has no '='; expected KEY=VALUE, for example fit.batch_size=64")
    return key, value


def register(app: typer.Typer) -> None:
    app.command("train")(_train)
