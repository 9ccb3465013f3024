"""What an index family is: how one channel's part of a segment is packed, merged and opened.

A family knows arrays by name and nothing of files. In a segment its array `values` is the file `CHANNEL.values.npy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from chamfer.artifact import ArrayStream
from chamfer.protocols import Retriever
from chamfer.types import Array, Bool, Document, Encoding, VectorKind


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """One channel's arrays in one segment (memory-mapped), and which of its rows are live.

    `live` bool [n] is False where a document was deleted; None means that all are live.
    """

    arrays: Mapping[str, Array]
    live: Bool | None
    n_documents: int


class Family(Protocol):
    """One index family; configured by its own frozen dataclass, stored in the collection's configuration."""

    name: ClassVar[str]
    kind: ClassVar[VectorKind | None]  # what it needs from the encoder; None reads the documents' text alone

    @property
    def config(self) -> Any: ...

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        """The arrays of one new segment, rows in the order of `documents`. Equal inputs give equal bytes."""
        ...

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        """The arrays of one segment that holds the live rows of `parts`, in order; large ones are streamed."""
        ...

    def open(self, parts: Sequence[SegmentPart]) -> Retriever[Any]:
        """A retriever over all parts; its row numbers run through the parts in order, deleted rows included.

        Deleted rows are never returned; statistics that scores depend on count live documents of all parts, so
        that scores do not depend on how documents lie in segments.
        """
        ...
