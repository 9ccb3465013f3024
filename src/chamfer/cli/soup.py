"""`chamfer soup`: averages the weights of trained models (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.core.errors import InvalidInput


def _soup(
    models: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Model directories that chamfer train wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the averaged model.")],
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Weight of each model. Default: equal weights.")] = "",
) -> None:
    """Average trained models of the same kind, backbone and head: checkpoints, seeds, or data mixes."""
    from chamfer.models.training.loop.model_soup import soup

    soup(models, out, [_weight(text) for text in weights.split(",")] if weights else [])
    terminal.messages.print(f"{out}: the mean of {len(models)} models")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"--weights contains {text!r}, expected numbers separated by commas, for example 3,1"
        ) from None


def register(app: typer.Typer) -> None:
    app.command("soup")(_soup)
