"""The document table of a segment, as Arrow IPC. Maps rows to document ids and back."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from chamfer.core.artifact import Artifact, ArtifactWriter, canonical_json
from chamfer.core.errors import InvalidInput
from chamfer.core.types import I64, Array, Document
from chamfer.indexing.collection.arrow_files import read_batches
from chamfer.indexing.collection.filters import FieldTable, write_fields
from chamfer.indexing.rows.segment_part import locate

FILE = "documents.arrow"
_SCHEMA = pa.schema(
    [
        ("doc_id", pa.large_string()),
        ("title", pa.large_string()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
    ]
)
_DOC_ID = 0  # index of its column
_BATCH = 1024


class DocumentTable:
    """Documents of one segment by row, rows by doc_id, and the filter tables."""

    def __init__(self, artifact: Artifact) -> None:
        self._batches = read_batches(artifact, FILE)
        self._columns = [batch.columns for batch in self._batches]
        # The first row of each batch and, last, the number of rows.
        self._starts = np.zeros(len(self._batches) + 1, dtype=np.int64)
        np.cumsum([batch.num_rows for batch in self._batches], out=self._starts[1:])
        self._hashes = artifact.array("ids.hashes")
        self._rows = artifact.array("ids.rows")
        self.fields = FieldTable(artifact, len(self))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def documents(self, rows: Sequence[int] | I64) -> list[Document]:
        """The documents of rows, in order; repeated rows are read once. The cost does not depend on N."""
        distinct, positions = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        read = []
        for columns, row in self._located(distinct):
            doc_id, title, text, metadata = (column[row].as_py() for column in columns)
            read.append(Document(doc_id, text, title, json.loads(metadata)))
        return [read[position] for position in positions.tolist()]

    def doc_ids(self, rows: Sequence[int] | I64) -> list[str]:
        """The ids of rows, in order. The cost does not depend on N."""
        wanted = np.asarray(rows, dtype=np.int64)
        return [columns[_DOC_ID][row].as_py() for columns, row in self._located(wanted)]

    def rows(self, doc_ids: Sequence[str]) -> I64:
        """Row of each doc_id, -1 if it is absent: i64 [n]. Cost O(log N) per id."""
        wanted = id_hashes(doc_ids)
        rows = np.full(len(doc_ids), -1, dtype=np.int64)
        for i, position in enumerate(np.searchsorted(self._hashes, wanted)):
            while position < len(self._hashes) and self._hashes[position] == wanted[i]:
                row = int(self._rows[position])
                if self._doc_id(row) == doc_ids[i]:
                    rows[i] = row
                    break
                position += 1  # ids with the same hash are adjacent
        return rows

    def hashes_of(self, rows: I64) -> Array:
        """64-bit id hashes u64 of rows. Cost O(N)."""
        by_row = np.empty(len(self), dtype=np.uint64)
        by_row[self._rows] = self._hashes
        return by_row[rows]

    def batches_of(self, rows: I64) -> Iterator[pa.RecordBatch]:
        """The rows i64 [n], ascending, as record batches; a batch whose rows are all requested is not copied."""
        ends = np.searchsorted(rows, self._starts)
        for batch, start, begin, end in zip(self._batches, self._starts, ends, ends[1:], strict=False):
            if begin == end:
                continue
            yield batch if end - begin == batch.num_rows else batch.take(pa.array(rows[begin:end] - start))

    def _doc_id(self, row: int) -> str:
        number = bisect_right(self._starts, row) - 1
        doc_id: str = self._columns[number][_DOC_ID][row - int(self._starts[number])].as_py()
        return doc_id

    def _located(self, rows: I64) -> Iterator[tuple[list[Any], int]]:
        """(columns of the batch, position within the batch) of each row.

        Cells are read one by one: `Table.take` first joins all batches of the table, 10 ms for 100,000 documents.
        """
        numbers, local = locate(self._starts, rows)
        for number, row in zip(numbers.tolist(), local.tolist(), strict=True):
            yield self._columns[number], row


def write_documents(writer: ArtifactWriter, documents: Iterable[Document]) -> int:
    """Writes the table, the id index and the filter tables of documents; returns how many there are."""
    return _write(writer, _batches(documents))


def write_merged(writer: ArtifactWriter, parts: Sequence[tuple[DocumentTable, I64]]) -> int:
    """Writes the same files from rows (ascending) of existing tables, streamed."""
    return _write(writer, (batch for table, rows in parts for batch in table.batches_of(rows)))


def id_hashes(doc_ids: Iterable[str]) -> Array:
    """64-bit BLAKE2b of each id: u64 [n]."""
    digests = b"".join(blake2b(i.encode("utf-8"), digest_size=8).digest() for i in doc_ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _batches(documents: Iterable[Document]) -> Iterator[pa.RecordBatch]:
    stream = iter(documents)
    while block := list(islice(stream, _BATCH)):
        try:
            columns = [
                pa.array([d.doc_id for d in block], pa.large_string()),
                pa.array([d.title for d in block], pa.large_string()),
                pa.array([d.text for d in block], pa.large_string()),
                pa.array([canonical_json(dict(d.metadata)) for d in block], pa.large_string()),
            ]
        except (UnicodeEncodeError, pa.ArrowInvalid, TypeError, ValueError) as error:
            raise InvalidInput(f"a document near {block[0].doc_id!r} cannot be stored: {error}") from error
        yield pa.record_batch(columns, schema=_SCHEMA)


def _write(writer: ArtifactWriter, batches: Iterable[pa.RecordBatch]) -> int:
    hashes: list[Array] = []
    entries: list[tuple[int, dict[str, Any]]] = []
    n = 0
    pending: list[pa.RecordBatch] = []
    with pa.OSFile(str(writer.path(FILE)), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:

        def flush() -> None:
            for batch in pa.Table.from_batches(pending, _SCHEMA).combine_chunks().to_batches(max_chunksize=_BATCH):
                file.write_batch(batch)
            pending.clear()

        for batch in batches:
            hashes.append(id_hashes(batch.column("doc_id").to_pylist()))
            entries += [
                (n + i, json.loads(text)) for i, text in enumerate(batch.column("metadata").to_pylist()) if text != "{}"
            ]
            n += batch.num_rows
            pending.append(batch)
            # A batch ends every 1,024 rows, however the input is divided, so that equal documents give equal bytes.
            while sum(b.num_rows for b in pending) >= _BATCH:
                table = pa.Table.from_batches(pending, _SCHEMA)
                file.write_batch(table.slice(0, _BATCH).combine_chunks().to_batches()[0])
                pending[:] = table.slice(_BATCH).combine_chunks().to_batches()
        flush()
    flat = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
    order = np.argsort(flat, kind="stable")
    writer.add_array("ids.hashes", flat[order])
    writer.add_array("ids.rows", order.astype(np.int32))
    write_fields(writer, entries)
    return n
