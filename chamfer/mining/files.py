"""Pools on disk: Parquet in the form of training groups, one row a query.

query_id, query, source, split strings; doc_ids and fates lists of strings; labels list of f32 (1: known relevant);
every other column is a feature, a list of f32 aligned with doc_ids, NaN where a stage did not see the candidate.
Three files: OUT (all candidates: the pool log), OUT with .groups.parquet (positives, then the kept negatives: what the
jobs train on) and OUT with .documents.parquet (doc_id, text of all of them).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chamfer.errors import InvalidInput, NotFound
from chamfer.mining.filters import KEPT, POSITIVE
from chamfer.mining.pool import Pool
from indexing.collection import Collection

DOCUMENTS_AT_ONCE = 4096


def groups_path(out: Path) -> Path:
    """Where the training groups of a pool log go."""
    return out.with_suffix(".groups.parquet")


def documents_path(out: Path) -> Path:
    """Where the texts of a pool log go."""
    return out.with_suffix(".documents.parquet")


def table_of(pools: Sequence[Pool], source: str, split: str) -> pa.Table:
    """The pools as a table, one row a query."""
    names = list(dict.fromkeys(name for pool in pools for name in pool.features))
    columns: dict[str, Any] = {
        "query_id": pa.array([pool.query.query_id for pool in pools], pa.string()),
        "query": pa.array([pool.query.text for pool in pools], pa.string()),
        "source": pa.array([source] * len(pools), pa.string()),
        "split": pa.array([split] * len(pools), pa.string()),
        "doc_ids": pa.array([[d.doc_id for d in pool.documents] for pool in pools], pa.list_(pa.string())),
        "labels": float_lists([pool.positive.astype(np.float32) for pool in pools]),
        "fates": pa.array([pool.fates for pool in pools], pa.list_(pa.string())),
    }
    for name in names:
        missing = [np.full(len(pool), np.nan, dtype=np.float32) for pool in pools]
        columns[name] = float_lists([pool.features.get(name, gap) for pool, gap in zip(pools, missing, strict=True)])
    return pa.table(columns)


def training_groups(table: pa.Table) -> pa.Table:
    """Positives, then kept negatives in the order drawn, of queries that have both; all columns but the fates."""
    rows = []
    for row in table.to_pylist():
        positives = [place for place, fate in enumerate(row["fates"]) if fate == POSITIVE]
        negatives = [place for place, fate in enumerate(row["fates"]) if fate == KEPT]
        if not positives or not negatives:
            continue
        chosen = positives + negatives
        rows.append(
            {k: [v[place] for place in chosen] if isinstance(v, list) else v for k, v in row.items() if k != "fates"}
        )
    return pa.Table.from_pylist(rows, schema=table.schema.remove(table.schema.get_field_index("fates")))


def merge(parts: Iterable[Path], out: Path) -> int:
    """Lays tables end to end as `out`, one at a time in memory, and writes the groups beside it; returns the groups."""
    paths = list(parts)
    schema = pa.unify_schemas([pq.read_schema(path) for path in paths])
    groups = 0
    without = schema.remove(schema.get_field_index("fates"))
    with _writer(groups_path(out), without) as kept, _writer(out, schema) as every:
        for path in paths:
            table = _in_schema(pq.read_table(path), schema)
            every.write_table(table)
            part = training_groups(table)
            groups += part.num_rows
            kept.write_table(part)
    return groups


def write_documents(out: Path, documents: Iterator[tuple[list[str], list[str]]]) -> None:
    """Writes blocks of (doc_ids, texts)."""
    schema = pa.schema([("doc_id", pa.string()), ("text", pa.string())])
    with _writer(documents_path(out), schema) as writer:
        for ids, texts in documents:
            writer.write_table(pa.table({"doc_id": ids, "text": texts}, schema=schema))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table whole or not at all."""
    with _writer(path, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path, needed: Sequence[str]) -> pa.Table:
    """A Parquet file with at least these columns; NotFound or InvalidInput otherwise."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist; expected a Parquet file with {', '.join(needed)}")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path} is not a readable Parquet file: {error}") from error
    if missing := set(needed) - set(table.column_names):
        raise InvalidInput(f"{path} lacks the columns {sorted(missing)}; it has {table.column_names}")
    return table


def count_fates(path: Path) -> Mapping[str, int]:
    """How many candidates of a pool log met each fate, most frequent first."""
    column = pq.read_table(path, columns=["fates"])["fates"].combine_chunks().flatten()
    counted = column.value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in sorted(counted, key=lambda row: -row["counts"])}


def texts_of(collection: Collection, ids: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Blocks of (doc_ids, texts); a document that was deleted since is left out."""
    for start in range(0, len(ids), DOCUMENTS_AT_ONCE):
        rows = collection.rows(ids[start : start + DOCUMENTS_AT_ONCE])
        documents = collection.documents(rows[rows >= 0])
        yield [d.doc_id for d in documents], [d.content for d in documents]


def doc_ids(path: Path) -> list[str]:
    """The documents that a pool log names, with repetitions."""
    ids: list[str] = pq.read_table(path, columns=["doc_ids"])["doc_ids"].combine_chunks().flatten().to_pylist()
    return ids


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a sibling file that becomes `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            yield writer
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the schema; a feature that no query of the block has is NaN throughout."""
    lengths = [len(ids) for ids in table["doc_ids"].to_pylist()]
    for field in schema:
        if field.name not in table.column_names:
            gaps = [np.full(length, np.nan, dtype=np.float32) for length in lengths]
            table = table.append_column(field, float_lists(gaps))
    return table.select(schema.names)


def float_lists(rows: Sequence[Any]) -> pa.Array:
    """Arrays f32 [n_i] as one Arrow column of lists."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    flat = np.concatenate([np.empty(0, dtype=np.float32), *rows]).astype(np.float32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float32()))
