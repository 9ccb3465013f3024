"""`chamfer compact`: merges small segments and drops deleted rows."""

from __future__ import annotations

import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument


def _compact(collection: CollectionArgument) -> None:
    """Merge small segments and drop deleted documents, without encoding anything again."""
    from chamfer.indexing.building.updates import compact

    report = compact(collection)
    terminal.messages.print(f"{report.snapshot}: {report.deleted:,} deleted rows dropped")


def register(app: typer.Typer) -> None:
    app.command("compact")(_compact)
