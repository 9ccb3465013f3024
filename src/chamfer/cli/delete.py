"""`chamfer delete`: deletes documents of a collection by id."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument
from chamfer.core.errors import InvalidInput


def _delete(
    collection: CollectionArgument,
    doc_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Document ids.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids", help="File with one document id per line.")] = None,
) -> None:
    """Delete documents by id."""
    from chamfer.indexing.building.updates import delete

    ids = list(doc_ids or [])
    if ids_file is not None:
        ids += [line for line in ids_file.read_text(encoding="utf-8").splitlines() if line]
    if not ids:
        raise InvalidInput("no document id given; pass ids as arguments, or a file of ids with --ids")
    report = delete(collection, ids)
    terminal.messages.print(f"{report.snapshot}: {report.deleted:,} documents deleted")
    for missing in report.missing:
        terminal.messages.print(f"not in the collection: {missing}", markup=False, style="yellow")


def register(app: typer.Typer) -> None:
    app.command("delete")(_delete)
