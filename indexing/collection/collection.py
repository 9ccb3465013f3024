"""An opened collection: one snapshot, its documents and one retriever per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from chamfer.core.protocols import Retriever
from chamfer.core.types import I64, Bool, Document
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.indexing.collection.filters import Condition
from chamfer.indexing.collection.recall_report import ChannelRecall
from chamfer.indexing.collection.segment import Segment
from chamfer.indexing.collection.snapshot import Snapshot, read_current, read_snapshot
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import locate


@dataclass(frozen=True, slots=True)
class Channel:
    """A retriever and the index family that opened it."""

    name: str
    family: Family
    retriever: Retriever[Any]


class Collection:
    """A snapshot, opened for reading. It does not change; open again to see a newer one."""

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self.path = path
        self._snapshot = snapshot
        self._segments: tuple[Segment, ...] = snapshot.segments
        self._starts = np.zeros(len(self._segments) + 1, dtype=np.int64)
        np.cumsum([len(segment) for segment in self._segments], out=self._starts[1:])
        self._n_live = sum(segment.n_live for segment in self._segments)
        families = snapshot.families()
        self.channels: Mapping[str, Channel] = {
            name: Channel(name, family, family.open([segment.part(name) for segment in self._segments]))
            for name, family in families.items()
        }

    @classmethod
    def open(cls, path: Path | str, *, encoder_fingerprint: str | None = None, verify: bool = False) -> Self:
        """The current snapshot of the collection at `path`.

        If a writer replaces and removes that snapshot while it is being opened, the newer one is opened. Raises
        NotFound (no finished collection), Corrupt (missing, truncated or, with verify, altered files), Incompatible
        (newer format, or built with another encoder), Unavailable (too many open files or mappings).
        """
        folder = Path(path)
        return read_current(folder, lambda name: cls(folder, read_snapshot(folder, name, encoder_fingerprint, verify)))

    def __len__(self) -> int:
        """Number of live documents."""
        return self._n_live

    @property
    def n_rows(self) -> int:
        """Number of rows, deleted ones included."""
        return int(self._starts[-1])

    @property
    def snapshot(self) -> str:
        return self._snapshot.name

    @property
    def config(self) -> CollectionConfig:
        return self._snapshot.config

    @property
    def encoder_name(self) -> str | None:
        return self._snapshot.encoder_name

    @property
    def encoder_fingerprint(self) -> str | None:
        return self._snapshot.encoder_fingerprint

    @property
    def segments(self) -> Sequence[Segment]:
        return self._segments

    @property
    def recall(self) -> Mapping[str, ChannelRecall]:
        """By channel of MaxSim candidates: the recall that the build measured on its sample."""
        return self._snapshot.recall

    @property
    def n_truncated(self) -> int:
        """Number of documents, deleted ones included, that were longer than the encoder reads."""
        return sum(segment.n_truncated for segment in self._segments)

    def allowed(self, condition: Condition | None) -> Bool | None:
        """bool [n_rows]: rows that fulfil the condition, whether deleted or not; None without a condition."""
        if condition is None:
            return None
        return np.concatenate([np.zeros(0, dtype=bool), *(s.table.fields.mask(condition) for s in self._segments)])

    def documents(self, rows: Sequence[int] | I64) -> list[Document]:
        """The documents of rows, in order."""
        wanted = np.asarray(rows, dtype=np.int64)
        segment_of, local = locate(self._starts, wanted)
        documents: dict[int, Document] = {}
        for number in np.unique(segment_of):
            positions = np.flatnonzero(segment_of == number)
            read = self._segments[number].table.documents(local[positions])
            documents.update(zip(positions.tolist(), read, strict=True))
        return [documents[position] for position in range(len(wanted))]

    def doc_ids(self, rows: Sequence[int] | I64) -> list[str]:
        """The ids of rows, in order."""
        wanted = np.asarray(rows, dtype=np.int64)
        segment_of, local = locate(self._starts, wanted)
        doc_ids = np.empty(len(wanted), dtype=object)
        for number in np.unique(segment_of):
            positions = np.flatnonzero(segment_of == number)
            doc_ids[positions] = self._segments[number].table.doc_ids(local[positions])
        return list(doc_ids)

    def rows(self, doc_ids: Sequence[str]) -> I64:
        """The live row of each doc_id, -1 where there is none: i64 [n]."""
        rows = np.full(len(doc_ids), -1, dtype=np.int64)
        for start, segment in zip(self._starts, self._segments, strict=False):
            local = segment.table.rows(doc_ids)
            is_live = local >= 0 if segment.live is None else (local >= 0) & segment.live[local]
            rows[is_live] = start + local[is_live]
        return rows

    def field_names(self) -> list[str]:
        """Names of the metadata fields that filters can use."""
        return sorted({name for segment in self._segments for name in segment.table.fields.names()})

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes on disk of each channel, and of the documents."""
        sizes: dict[str, int] = {}
        for segment in self._segments:
            for part, size in segment.bytes_by_part().items():
                sizes[part] = sizes.get(part, 0) + size
        return sizes

    @property
    def bytes_per_document(self) -> float:
        return sum(self.bytes_by_part().values()) / max(len(self), 1)

    def close(self) -> None:
        """Releases the mapped files; the collection cannot be used afterwards."""
        self.channels = {}
        self._segments = ()
        self._n_live = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
