"""The interface of row storages: training, packing, scanning and unpacking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from chamfer.core.types import F32, Array
from chamfer.indexing.rows.segment_part import Codec

Scan = Callable[[F32], F32]
"""Returns f32 [n], the (estimated) inner products of n rows with a query f32 [D]."""


class Storage(Protocol):
    """Vectors f32 [n, D] as arrays [n, ...] and back.

    Every array has one entry per row, so that segments merge by concatenation and single rows can be read. What a
    storage learns belongs to the codec of the collection.
    """

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        """What packing needs, from a sample [n, D], n >= 1; empty for most storages.

        The vectors consist of `repetitions` runs of dimensions, of equal length and similar distribution.
        """
        ...

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        """The arrays of vectors f32 [n, D]. InvalidInput if one cannot be represented."""
        ...

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        """A scan of all rows of the arrays. A row's score does not depend on the other rows."""
        ...

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        """The vectors f32 [n, D] that the arrays represent."""
        ...
