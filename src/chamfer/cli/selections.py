"""`chamfer selections`: turns a log of searches and clicks into training groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument
from chamfer.core.errors import InvalidInput


def _selections(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="Selection log of a service (directory), or a file of impressions.")
    ],
    collection: CollectionArgument,
    out: Annotated[Path, typer.Option(help="Groups to write (.parquet); documents are written beside it.")],
    name: Annotated[str, typer.Option(help="Use only searches of this served collection. Default: all.")] = "",
    queries: Annotated[
        Path | None, typer.Option(help="BEIR folder or JSONL of queries, if the log holds only digests of them.")
    ] = None,
    dev: Annotated[float, typer.Option(help="Share of the queries to hold out, as split dev.")] = 0.0,
) -> None:
    """Turn a log of searches into training groups: clicked, shown and retrieved documents with their features."""
    from chamfer.indexing.building.corpus import read_queries
    from chamfer.indexing.collection.collection import Collection
    from chamfer.mining import pool_tables
    from chamfer.mining.click_logs import pools_of, read_click_log
    from chamfer.models.training.data.groups import write_documents
    from chamfer.models.training.data.parquet import write_table

    impressions, unreadable = read_click_log(log)
    selected = [impression for impression in impressions if not name or impression.collection == name]
    for impression in selected:
        impression.source = impression.source or impression.collection
        impression.split = "dev" if impression.is_held_out(dev) else impression.split
    pools = pools_of(selected, read_queries(queries) if queries else ())
    if not pools:
        raise InvalidInput(
            f"the query text of none of the {len(selected):,} recorded searches is known; pass --queries, or set "
            "selection_log.text so that the service records it"
        )
    write_table(out, pool_tables.table_of(pools))
    ids = sorted({document.doc_id for pool in pools for document in pool.documents})
    with Collection.open(collection) as opened:
        write_documents(pool_tables.documents_path(out), pool_tables.texts_of(opened, ids))
    clicked = sum(pool.positive.any() for pool in pools)
    terminal.messages.print(
        f"{out}: {len(pools):,} of {len(selected):,} searches, {clicked:,} with a click"
        + (f"; {unreadable:,} lines could not be read" if unreadable else "")
    )


def register(app: typer.Typer) -> None:
    app.command("selections")(_selections)
