"""What an index family is: how one channel's part of a segment is packed, merged and opened.

A family knows arrays by name and nothing of files. In a segment its array `values` is the file `CHANNEL.values.npy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.protocols import Retriever
from chamfer.core.types import Array, Document, Encoding, VectorKind
from chamfer.indexing.rows.segment_part import Codec, SegmentPart

LARGEST_VALUE = 1e15  # of a token vector: products of two, summed over dimensions and tokens, stay far within float32


class Family(Protocol):
    """One index family; configured by its own frozen dataclass, stored in the collection's configuration."""

    name: ClassVar[str]
    kind: ClassVar[VectorKind | None]  # what it needs from the encoder; None reads the documents' text alone

    @property
    def config(self) -> Any: ...

    @property
    def learns(self) -> bool:
        """Whether it has a codec, as it is configured."""
        ...

    def learn(self, encoding: Encoding | None) -> Codec:
        """The codec of a new collection, from the encoding of a sample. Equal inputs give equal bytes."""
        ...

    def with_codec(self, codec: Codec) -> Self:
        """The family that packs and searches with this codec."""
        ...

    def on_device(self, device: str) -> Self:
        """The family that learns and packs on this device ("cpu", "cuda"); one that computes nothing there is itself.

        A collection may be opened anywhere, whatever device built it.
        """
        ...

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


class OnCpu:
    """The device's part of a family that learns and packs on the CPU alone."""

    def on_device(self, device: str) -> Self:
        del device
        return self


class WithoutCodec(OnCpu):
    """The codec's part of a family that has none."""

    learns: ClassVar[bool] = False

    def learn(self, encoding: Encoding | None) -> Codec:
        del encoding
        return {}

    def with_codec(self, codec: Codec) -> Self:
        if codec:
            raise Incompatible(f"{type(self).__name__} has no codec, the collection brings {sorted(codec)}")
        return self


def check_finite(tokens: Array, whose: str) -> None:
    """InvalidInput naming the first token vector [T, D] of a document's or a query's that holds NaN or infinity."""
    if not (finite := np.isfinite(tokens).all(axis=-1)).all():
        raise InvalidInput(
            f"token vector {int(np.argmin(finite))} is not finite, of {len(tokens)} of a {whose}; the encoder gave it "
            "(models.encoder, models.device)"
        )


def check_tokens(tokens: Array, dim: int, channel: str, whose: str) -> None:
    """InvalidInput unless token vectors [T, D] are finite, no larger than scores can bear, and have the dimensions that
    the channel reads."""
    if tokens.shape[1] != dim:
        raise InvalidInput(
            f"token vectors of a {whose} have {tokens.shape[1]} dimensions, the {channel} channel reads {dim}; use the "
            "encoder that the collection was built with (models.encoder), or build it again"
        )
    check_finite(tokens, whose)
    if (largest := float(np.abs(tokens).max(initial=0))) > LARGEST_VALUE:
        raise InvalidInput(
            f"a token vector of a {whose} holds {largest:.3g}, expected at most {LARGEST_VALUE:g}, or scores would "
            "overflow; use an encoder that gives vectors of unit length (models.encoder)"
        )
