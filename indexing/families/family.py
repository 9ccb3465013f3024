"""The protocol of an index family: how one channel's part of a segment is packed, merged and opened.

A family handles named arrays, not files. A segment stores its array `values` as the file `CHANNEL.values.npy`.
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

LARGEST_VALUE = 1e15  # in a token vector: inner products of two and their sums over tokens stay well within float32


class Family(Protocol):
    """One index family; configured by its own frozen dataclass, stored in the collection's configuration."""

    name: ClassVar[str]
    kind: ClassVar[VectorKind | None]  # the vectors that it needs from the encoder; None if it reads only the text

    @property
    def config(self) -> Any: ...

    @property
    def learns(self) -> bool:
        """Whether it has a codec in this configuration."""
        ...

    def learn(self, encoding: Encoding | None) -> Codec:
        """The codec of a new collection, from the encoding of a sample. Equal inputs give equal bytes."""
        ...

    def with_codec(self, codec: Codec) -> Self:
        """The family that packs and searches with this codec."""
        ...

    def on_device(self, device: str) -> Self:
        """The family that learns and packs on this device ("cpu", "cuda"); itself if it runs only on the CPU.

        A collection can be opened anywhere, whatever device built it.
        """
        ...

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        """The arrays of one new segment, rows in the order of `documents`. Equal inputs give equal bytes."""
        ...

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        """The arrays of one segment that holds the live rows of `parts`, in order; large ones are streamed."""
        ...

    def open(self, parts: Sequence[SegmentPart]) -> Retriever[Any]:
        """A retriever over all parts; its row numbers continue through the parts in order, deleted rows included.

        Deleted rows are never returned. Statistics behind scores count the live documents of all parts, so that
        scores do not depend on the division of documents into segments.
        """
        ...


class OnCpu:
    """The `on_device` of a family that learns and packs only on the CPU."""

    def on_device(self, device: str) -> Self:
        del device
        return self


class WithoutCodec(OnCpu):
    """The codec methods of a family without a codec."""

    learns: ClassVar[bool] = False

    def learn(self, encoding: Encoding | None) -> Codec:
        del encoding
        return {}

    def with_codec(self, codec: Codec) -> Self:
        if codec:
            raise Incompatible(f"{type(self).__name__} has no codec, but the collection has one with {sorted(codec)}")
        return self


def check_finite(tokens: Array, text_kind: str) -> None:
    """Raises InvalidInput if a token vector of tokens [T, D] contains NaN or infinity.

    text_kind: "document" or "query", for the message.
    """
    if not (finite := np.isfinite(tokens).all(axis=-1)).all():
        raise InvalidInput(
            f"token vector {int(np.argmin(finite))} of {len(tokens)} of a {text_kind} is not finite; the encoder "
            "produced it (models.encoder, models.device)"
        )


def check_tokens(tokens: Array, dim: int, channel: str, text_kind: str) -> None:
    """Raises InvalidInput unless token vectors [T, D] are finite, at most LARGEST_VALUE and of `dim` dimensions."""
    if tokens.shape[1] != dim:
        raise InvalidInput(
            f"token vectors of a {text_kind} have {tokens.shape[1]} dimensions, the {channel} channel reads {dim}; use "
            "the encoder that the collection was built with (models.encoder), or build it again"
        )
    check_finite(tokens, text_kind)
    if (largest := float(np.abs(tokens).max(initial=0))) > LARGEST_VALUE:
        raise InvalidInput(
            f"a token vector of a {text_kind} holds {largest:.3g}, expected at most {LARGEST_VALUE:g}, or scores would "
            "overflow; use an encoder that gives vectors of unit length (models.encoder)"
        )
