"""The document table of a segment: Arrow IPC, memory-mapped. Here a row and a doc_id meet, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from chamfer.core.artifact import Artifact, ArtifactWriter, canonical_json
from chamfer.core.errors import Corrupt, InvalidInput
from chamfer.core.types import I64, Document
from chamfer.indexing.collection.filters import FieldTable, write_fields

FILE = "documents.arrow"
_SCHEMA = pa.schema(
    [
        ("doc_id", pa.large_string()),
        ("title", pa.large_string()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
    ]
)
_BATCH = 1024


class DocumentTable:
    """Documents of one segment by row, rows by doc_id, and the filter tables."""

    def __init__(self, artifact: Artifact) -> None:
        path = artifact.file(FILE)
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise Corrupt(
                f"{path} is not a readable Arrow file: {error}; restore it from a copy or build again"
            ) from error
        self._hashes = artifact.array("ids.hashes")
        self._rows = artifact.array("ids.rows")
        self.fields = FieldTable(artifact, len(self))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def documents(self, rows: Sequence[int] | I64) -> list[Document]:
        """The documents of rows, in order; a row that comes twice is read once."""
        distinct, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        picked = self._table.take(pa.array(distinct)).to_pydict()
        columns = (picked[name] for name in ("doc_id", "text", "title", "metadata"))
        read = [
            Document(i, text, title, json.loads(metadata)) for i, text, title, metadata in zip(*columns, strict=True)
        ]
        return [read[place] for place in places.tolist()]

    def doc_ids(self, rows: Sequence[int] | I64) -> list[str]:
        ids: list[str] = self._table.column("doc_id").take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return ids

    def rows(self, doc_ids: Sequence[str]) -> I64:
        """Row of each doc_id, -1 where it is not here: i64 [n]. Cost O(log N) each."""
        wanted = id_hashes(doc_ids)
        places = np.searchsorted(self._hashes, wanted)
        out = np.full(len(doc_ids), -1, dtype=np.int64)
        for i, place in enumerate(places):
            while place < len(self._hashes) and self._hashes[place] == wanted[i]:
                row = int(self._rows[place])
                if self._table.column("doc_id")[row].as_py() == doc_ids[i]:
                    out[i] = row
                    break
                place += 1  # two ids with one hash stand side by side
        return out

    def hashes_of(self, rows: I64) -> Any:
        """64-bit id hashes u64 of rows."""
        by_row = np.empty(len(self), dtype=np.uint64)
        by_row[self._rows] = self._hashes
        return by_row[rows]

    def blocks(self, rows: I64) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), _BATCH):
            taken = self._table.take(pa.array(rows[start : start + _BATCH])).combine_chunks()
            yield from taken.to_batches()


def write_documents(writer: ArtifactWriter, documents: Iterable[Document]) -> int:
    """Writes the table, its ids and its filter tables from documents; returns how many there are."""
    return _write(writer, _batches(documents))


def write_merged(writer: ArtifactWriter, parts: Sequence[tuple[DocumentTable, I64]]) -> int:
    """The same from rows of existing tables, streamed."""
    return _write(writer, (batch for table, rows in parts for batch in table.blocks(rows)))


def id_hashes(doc_ids: Iterable[str]) -> Any:
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
    hashes: list[Any] = []
    entries: list[tuple[int, dict[str, Any]]] = []
    n = 0
    pending: list[pa.RecordBatch] = []
    with pa.OSFile(str(writer.path(FILE)), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as out:

        def flush() -> None:
            for batch in pa.Table.from_batches(pending, _SCHEMA).combine_chunks().to_batches(max_chunksize=_BATCH):
                out.write_batch(batch)
            pending.clear()

        for batch in batches:
            hashes.append(id_hashes(batch.column("doc_id").to_pylist()))
            entries += [
                (n + i, json.loads(text)) for i, text in enumerate(batch.column("metadata").to_pylist()) if text != "{}"
            ]
            n += batch.num_rows
            pending.append(batch)
            # Cut at the same places however the input was cut: equal documents give equal bytes.
            while sum(b.num_rows for b in pending) >= _BATCH:
                table = pa.Table.from_batches(pending, _SCHEMA)
                out.write_batch(table.slice(0, _BATCH).combine_chunks().to_batches()[0])
                pending[:] = table.slice(_BATCH).combine_chunks().to_batches()
        flush()
    flat = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
    order = np.argsort(flat, kind="stable")
    writer.add_array("ids.hashes", flat[order])
    writer.add_array("ids.rows", order.astype(np.int32))
    write_fields(writer, entries)
    return n
