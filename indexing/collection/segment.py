"""A segment: documents and the arrays of every channel, written once. A block of a build is a small segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chamfer.core.artifact import Artifact, open_artifact, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.types import I64, Bool, Document, Encoding
from chamfer.indexing.collection.documents import DocumentTable, write_documents, write_merged
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import SegmentPart

KIND = "segment"


@dataclass(frozen=True, slots=True)
class Segment:
    """An opened segment. `live` bool [n] is False for deleted rows; None if no row is deleted."""

    artifact: Artifact
    table: DocumentTable
    live: Bool | None = None

    @property
    def name(self) -> str:
        return self.artifact.path.name

    def __len__(self) -> int:
        return len(self.table)

    @property
    def n_live(self) -> int:
        return len(self) if self.live is None else int(np.count_nonzero(self.live))

    @property
    def n_truncated(self) -> int:
        return int(self.artifact.body["truncated"])

    def live_rows(self) -> I64:
        return np.arange(len(self), dtype=np.int64) if self.live is None else np.flatnonzero(self.live)

    def part(self, channel: str) -> SegmentPart:
        """The arrays and live rows that a channel's family reads."""
        return SegmentPart(self.artifact.arrays(f"{channel}."), self.live, len(self))

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes on disk of each channel, and of the documents."""
        sizes: dict[str, int] = {}
        channels = set(self.artifact.body["channels"])
        for name, entry in self.artifact.files.items():
            part = name.split(".")[0]
            part = part if part in channels else "documents"
            sizes[part] = sizes.get(part, 0) + int(entry["bytes"])
        return sizes


def open_segment(path: Path, live: Bool | None = None, *, verify: bool = False) -> Segment:
    """The segment at `path`; raises the errors of chamfer.core.artifact.open_artifact."""
    artifact = open_artifact(path, KIND, verify=verify)
    return Segment(artifact, DocumentTable(artifact), live)


def write_segment(
    path: Path, documents: Sequence[Document], encoding: Encoding | None, families: Mapping[str, Family]
) -> None:
    """Writes a segment of documents. `encoding` holds the vectors that the families need from the encoder."""
    truncated = 0 if encoding is None else int(np.count_nonzero(encoding.truncated))
    body = {"channels": sorted(families), "documents": len(documents), "truncated": truncated}
    with write_artifact(path, KIND, body) as writer:
        write_documents(writer, documents)
        for channel, family in families.items():
            for name, array in family.pack(documents, encoding).items():
                writer.add_array(f"{channel}.{name}", array)


def merge_segments(path: Path, segments: Sequence[Segment], families: Mapping[str, Family]) -> None:
    """Writes one segment of the live rows of `segments`, in order; nothing is encoded again."""
    if not segments:
        raise InvalidInput("nothing to merge: no segment was given")
    truncated = sum(segment.n_truncated for segment in segments)
    body = {"channels": sorted(families), "documents": sum(s.n_live for s in segments), "truncated": truncated}
    with write_artifact(path, KIND, body) as writer:
        write_merged(writer, [(segment.table, segment.live_rows()) for segment in segments])
        for channel, family in families.items():
            for name, array in family.merge([segment.part(channel) for segment in segments]).items():
                writer.add_array(f"{channel}.{name}", array)
