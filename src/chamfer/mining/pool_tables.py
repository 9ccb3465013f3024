"""Pools on disk: Parquet in the format of training groups, one row per query.

query_id, query, source, split strings; doc_ids and fates lists of strings; labels list of f32 (1: known relevant);
every other column is a feature, a list of f32 aligned with doc_ids, NaN where a stage did not see the candidate.
There are three files: OUT, the pool log, has all candidates; OUT with .groups.parquet has the positives, then the kept
negatives, for training; OUT with .documents.parquet has the doc_id and text of every candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chamfer.indexing.collection.collection import Collection
from chamfer.mining.fates import KEPT, POSITIVE, WRONG_MODALITY
from chamfer.mining.pool import Pool
from chamfer.models.training.data import groups
from chamfer.models.training.data.parquet import float_lists, table_writer

DOCUMENTS_PER_READ = 4096


def groups_path(out: Path) -> Path:
    """Path of the training groups of a pool log."""
    return out.with_suffix(".groups.parquet")


def documents_path(out: Path) -> Path:
    """Path of the document texts of a pool log."""
    return out.with_suffix(".documents.parquet")


def table_of(pools: Sequence[Pool]) -> pa.Table:
    """The pools as a table, one row per query."""
    names = list(dict.fromkeys(name for pool in pools for name in pool.features))
    table = groups.table_of([_group(pool, names) for pool in pools])
    fates = pa.array([pool.fates for pool in pools], pa.list_(pa.string()))
    return table.add_column(table.schema.get_field_index("labels") + 1, "fates", fates)


def _group(pool: Pool, names: Sequence[str]) -> groups.Group:
    missing = np.full(len(pool), np.nan, dtype=np.float32)
    return groups.Group(
        query_id=pool.query.query_id,
        query=pool.query.text,
        doc_ids=[document.doc_id for document in pool.documents],
        labels=pool.positive.astype(np.float32).tolist(),
        source=pool.source,
        split=pool.split,
        teachers={name: pool.features.get(name, missing).tolist() for name in names},
        query_image=pool.query.image,
    )


def training_groups(table: pa.Table) -> pa.Table:
    """Positives, then kept negatives in rank order, of the queries that have both; all columns except the fates."""
    rows = []
    for row in table.to_pylist():
        positives = [index for index, fate in enumerate(row["fates"]) if fate == POSITIVE]
        negatives = [index for index, fate in enumerate(row["fates"]) if fate in (KEPT, WRONG_MODALITY)]
        if not positives or not negatives:
            continue
        selected = positives + negatives
        rows.append(
            {k: [v[index] for index in selected] if isinstance(v, list) else v for k, v in row.items() if k != "fates"}
        )
    return pa.Table.from_pylist(rows, schema=table.schema.remove(table.schema.get_field_index("fates")))


def merge(parts: Iterable[Path], out: Path) -> int:
    """Concatenates tables into `out`, one at a time in memory; writes the groups beside it and returns their number."""
    paths = list(parts)
    schema = pa.unify_schemas([pq.read_schema(path) for path in paths])
    count = 0
    group_schema = schema.remove(schema.get_field_index("fates"))
    with table_writer(groups_path(out), group_schema) as group_writer, table_writer(out, schema) as pool_writer:
        for path in paths:
            table = _in_schema(pq.read_table(path), schema)
            pool_writer.write_table(table)
            part = training_groups(table)
            count += part.num_rows
            group_writer.write_table(part)
    return count


def count_fates(path: Path) -> Mapping[str, int]:
    """Number of candidates of a pool log by fate, most frequent first."""
    column = pq.read_table(path, columns=["fates"])["fates"].combine_chunks().flatten()
    counted = column.value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in sorted(counted, key=lambda row: -row["counts"])}


def texts_of(collection: Collection, ids: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Blocks of (doc_ids, texts); documents that have since been deleted are left out."""
    for start in range(0, len(ids), DOCUMENTS_PER_READ):
        rows = collection.rows(ids[start : start + DOCUMENTS_PER_READ])
        documents = collection.documents(rows[rows >= 0])
        yield [d.doc_id for d in documents], [d.content for d in documents]


def doc_ids(path: Path) -> list[str]:
    """The document ids of all pools of a log, with repetitions."""
    ids: list[str] = pq.read_table(path, columns=["doc_ids"])["doc_ids"].combine_chunks().flatten().to_pylist()
    return ids


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with all columns of the schema; a feature that the table lacks is filled with NaN."""
    lengths = [len(ids) for ids in table["doc_ids"].to_pylist()]
    for field in schema:
        if field.name not in table.column_names:
            gaps = [np.full(length, np.nan, dtype=np.float32) for length in lengths]
            table = table.append_column(field, float_lists(gaps))
    return table.select(schema.names)
