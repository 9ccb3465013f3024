"""Parquet files of training data: written atomically, and checked for required columns when read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import F32


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer to a sibling file, which is renamed to `path` once it is complete."""
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


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table atomically."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path, required: Sequence[str]) -> pa.Table:
    """A Parquet file with at least these columns. NotFound without it, InvalidInput if it is damaged or lacks one."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist; expected a Parquet file with {', '.join(required)}")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path} is not a readable Parquet file: {error}") from error
    if missing := set(required) - set(table.column_names):
        raise InvalidInput(f"{path} lacks the columns {sorted(missing)}; it has {table.column_names}")
    return table


def float_lists(rows: Sequence[Sequence[float] | F32 | None]) -> pa.Array:
    """Rows of numbers [n_i] as one Arrow column of lists of f32; None becomes null."""
    flat = [np.asarray(() if row is None else row, dtype=np.float32) for row in rows]
    offsets = np.cumsum([0, *map(len, flat)]).astype(np.int32)
    values = pa.array(np.concatenate([np.empty(0, dtype=np.float32), *flat]), pa.float32())
    missing = pa.array([row is None for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing)
