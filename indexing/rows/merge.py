"""Merges arrays with one entry per row, for all families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.types import Array
from chamfer.indexing.rows.segment_part import SegmentPart

_BLOCK_BYTES = 32 << 20


def merge_rows(parts: Sequence[SegmentPart], names: Iterable[str]) -> dict[str, Array | ArrayStream]:
    """The entries of the live rows of all parts, in order, of each named array [n, ...]; matrices are streamed."""
    n_rows = sum(part.n_live for part in parts)
    merged: dict[str, Array | ArrayStream] = {}
    for name in names:
        first = parts[0].arrays[name]
        stream = ArrayStream(first.dtype, (n_rows, *first.shape[1:]), _live_entries(parts, name))
        merged[name] = stream if first.ndim > 1 else np.concatenate([first[:0], *stream.chunks])
    return merged


def _live_entries(parts: Sequence[SegmentPart], name: str) -> Iterator[Array]:
    for part in parts:
        array = part.arrays[name]
        for rows in part.live_blocks(array.itemsize * int(np.prod(array.shape[1:])), _BLOCK_BYTES):
            yield array[rows]
