"""An opened collection: one snapshot, its documents and one retriever a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from chamfer.core.protocols import Retriever
from chamfer.core.types import I64, Bool, Document
from chamfer.indexing.build.recall_floor import ChannelRecall
from chamfer.indexing.collection.filters import Condition
from chamfer.indexing.collection.segment import Segment
from chamfer.indexing.collection.snapshot import CollectionConfig, Snapshot, naming_corruption, open_snapshot
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import locate


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to retrieve."""

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
        families = snapshot.families()
        self.channels: Mapping[str, Channel] = {
            name: Channel(name, family, family.open([segment.part(name) for segment in self._segments]))
            for name, family in families.items()
        }

    @classmethod
    def open(cls, path: Path | str, *, encoder_fingerprint: str | None = None, verify: bool = False) -> Self:
        """The current snapshot of the collection at `path`.

        Raises NotFound (nothing finished there), Corrupt (missing, truncated or, with verify, altered files),
        Incompatible (newer format, or built with another encoder).
        """
        snapshot = open_snapshot(Path(path), encoder_fingerprint=encoder_fingerprint, verify=verify)
        with naming_corruption(Path(path)):
            return cls(Path(path), snapshot)

    def __len__(self) -> int:
        """Live documents."""
        return sum(segment.n_live for segment in self._segments)

    @property
    def n_rows(self) -> int:
        """Rows, deleted ones included."""
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
        """What channels that stand in for MaxSim held of it in the sample of the build."""
        return self._snapshot.recall

    @property
    def n_truncated(self) -> int:
        """Documents whose end the encoder did not see (deleted ones included)."""
        return sum(segment.n_truncated for segment in self._segments)

    def allowed(self, condition: Condition | None) -> Bool | None:
        """bool [n_rows]: rows that fulfil the condition, deleted ones perhaps among them; None without a condition."""
        if condition is None:
            return None
        return np.concatenate([np.zeros(0, dtype=bool), *(s.table.fields.mask(condition) for s in self._segments)])

    def documents(self, rows: Sequence[int] | I64) -> list[Document]:
        """The documents of rows, in order."""
        wanted = np.asarray(rows, dtype=np.int64)
        part_of, local = locate(self._starts, wanted)
        out: list[Document | None] = [None] * len(wanted)
        for number in np.unique(part_of):
            places = np.flatnonzero(part_of == number)
            for place, document in zip(places, self._segments[number].table.documents(local[places]), strict=True):
                out[place] = document
        return [document for document in out if document is not None]

    def doc_ids(self, rows: Sequence[int] | I64) -> list[str]:
        """The ids of rows, in order."""
        wanted = np.asarray(rows, dtype=np.int64)
        part_of, local = locate(self._starts, wanted)
        out = np.empty(len(wanted), dtype=object)
        for number in np.unique(part_of):
            places = np.flatnonzero(part_of == number)
            out[places] = self._segments[number].table.doc_ids(local[places])
        return list(out)

    def rows(self, doc_ids: Sequence[str]) -> I64:
        """The live row of each doc_id, -1 where there is none: i64 [n]."""
        out = np.full(len(doc_ids), -1, dtype=np.int64)
        for start, segment in zip(self._starts, self._segments, strict=False):
            local = segment.table.rows(doc_ids)
            alive = local >= 0 if segment.live is None else (local >= 0) & segment.live[local]
            out[alive] = start + local[alive]
        return out

    def field_names(self) -> list[str]:
        """Metadata fields that filters can name."""
        return sorted({name for segment in self._segments for name in segment.table.fields.names()})

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes on disk of each channel, and of the documents."""
        out: dict[str, int] = {}
        for segment in self._segments:
            for part, size in segment.bytes_by_part().items():
                out[part] = out.get(part, 0) + size
        return out

    @property
    def bytes_per_document(self) -> float:
        return sum(self.bytes_by_part().values()) / max(len(self), 1)

    def close(self) -> None:
        """Lets go of the files; the collection cannot be used afterwards."""
        self.channels = {}
        self._segments = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
