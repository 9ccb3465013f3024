"""`chamfer judge`: scores pairs or mined groups with a reranker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import ConfigOption


def _judge(
    pairs: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="Parquet file with the columns query and text, or mined groups.")
    ],
    model: Annotated[str, typer.Option(help="Reranker that scores the pairs.")],
    out: Annotated[Path, typer.Option(help="File to write: PAIRS with one more column.")],
    column: Annotated[str, typer.Option(help="Name of the new column.")] = "judge",
    block: Annotated[int, typer.Option(help="Number of rows per checkpoint.")] = 256,
    config: ConfigOption = None,
) -> None:
    """Score pairs with a reranker. After an interruption, run the same command again to resume."""
    from chamfer import api
    from chamfer.mining.teacher_scores import judge_file
    from chamfer.settings import load_settings

    reranker = api.reranker_of(load_settings(config), model)
    with terminal.count_progress("judge") as show:
        count = judge_file(pairs, out, reranker, column=column, block=block, progress=show)
    terminal.messages.print(f"{out}: {count:,} pairs")


def register(app: typer.Typer) -> None:
    app.command("judge")(_judge)
