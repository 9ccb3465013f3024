"""Token vectors as a segment stores them: floats, or codes of 2, 3, 4 or 8 bits per dimension, and centroid ids.

Codes are decoded block by block into float16 and scored by the same MaxSim as stored floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.types import F32, I64, Array, join_offsets, ragged_index
from chamfer.indexing.kernels.codes import TokenCodec, decode, maxsim_codes
from chamfer.indexing.kernels.maxsim import maxsim_fast, maxsim_rows
from chamfer.indexing.rows.segment_part import SegmentPart

PER_TOKEN = ("values", "centroid_ids", "scales")  # arrays with one entry per token; every other array is small

_MERGE_BYTES = 32 << 20
_DECODED_TOKENS = 4096  # 1 MB of 128 dimensions: still in the second-level cache when MaxSim reads it

Kernel = Callable[[F32, Array, I64, I64], F32]


class StoredTokens:
    """One segment's token vectors. Arrays: values f16, f32 or u8 [T, .], offsets i64 [N+1]; for codes scales f16 [T];
    with centroids centroid_ids u16 [T]."""

    def __init__(self, arrays: Mapping[str, Array], codec: TokenCodec | None) -> None:
        # Plain views, which compiled code requires; offsets are read often and therefore copied.
        self._values = np.asarray(arrays["values"])
        self._offsets = np.array(arrays["offsets"])
        self._ids = np.asarray(arrays.get("centroid_ids", np.empty(0, np.uint16)))
        self._scales = np.asarray(arrays.get("scales", np.empty(0, np.float16)))
        self._codec = codec
        self._lowest = None if codec is None else codec.lowest

    @property
    def dim(self) -> int:
        return int(self._values.shape[1]) if self._codec is None else len(self._codec.step)

    def matrix(self, row: int) -> F32:
        """Token vectors f32 [., D] of one row."""
        if self._codec is None or self._lowest is None:
            return self._values[self._offsets[row] : self._offsets[row + 1]].astype(np.float32)
        arrays = self._values, self._ids, self._scales
        return decode(arrays, self._codec, self._lowest, self._offsets, np.array([row])).astype(np.float32)

    def maxsim_fast(self, query: F32, rows: I64) -> F32:
        """MaxSim f32 [K] of query f32 [Tq, D] with rows i64 [K], by the fastest kernel."""
        if self._codec is not None:
            arrays = self._values, self._ids, self._scales
            scores = maxsim_codes(query, arrays, self._codec, self._offsets, np.ascontiguousarray(rows))
            if scores is not None:
                return scores
        return self._by(maxsim_fast, query, rows)

    def maxsim_rows(self, query: F32, rows: I64) -> F32:
        """As `maxsim_fast`, in float32 from the stored vectors, decoded if they are codes."""
        return self._by(maxsim_rows, query, rows)

    def _by(self, kernel: Kernel, query: F32, rows: I64) -> F32:
        if self._codec is None or self._lowest is None:
            return kernel(query, self._values, self._offsets, rows)
        arrays = self._values, self._ids, self._scales
        scores = np.empty(len(rows), dtype=np.float32)
        ends = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self._offsets[rows + 1] - self._offsets[rows], out=ends[1:])
        start = 0
        while start < len(rows):
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] + _DECODED_TOKENS, side="right")) - 1)
            decoded = decode(arrays, self._codec, self._lowest, self._offsets, rows[start:stop])
            positions = np.arange(stop - start, dtype=np.int64)
            scores[start:stop] = kernel(query, decoded, ends[start : stop + 1] - ends[start], positions)
            start = stop
        return scores

    def centroid_ids(self, rows: I64 | None) -> tuple[Array, I64]:
        """(centroid ids u16 [T], offsets i64 [n+1]) of n rows, ascending; None: of all rows, not copied."""
        if rows is None:
            return self._ids, self._offsets
        tokens, offsets = ragged_index(self._offsets, rows)
        return self._ids[tokens], offsets


def merge_tokens(parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
    """The arrays of the live rows of all parts; those with one entry per token are streamed."""
    lengths = [np.diff(part.arrays["offsets"])[part.live_rows()] for part in parts]
    offsets = join_offsets([np.concatenate([[0], np.cumsum(each)]).astype(np.int64) for each in lengths])
    merged: dict[str, Array | ArrayStream] = {
        "offsets": offsets,
        "largest_norm": np.array([max(float(part.arrays["largest_norm"][0]) for part in parts)]),
    }
    for name in PER_TOKEN:
        if name in parts[0].arrays:
            first = parts[0].arrays[name]
            merged[name] = ArrayStream(first.dtype, (int(offsets[-1]), *first.shape[1:]), _chunks(parts, name))
    return merged


def _chunks(parts: Sequence[SegmentPart], name: str) -> Iterator[Array]:
    for part in parts:
        stored = part.arrays[name]
        per_token = stored.itemsize * int(np.prod(stored.shape[1:]))
        for start, stop in _runs(part, _MERGE_BYTES // per_token):
            yield stored[start:stop]


def _runs(part: SegmentPart, budget: int) -> Iterator[tuple[int, int]]:
    """Token ranges of the live rows, adjacent rows joined, at most `budget` tokens each (at least one row)."""
    offsets = part.arrays["offsets"]
    start = stop = 0
    for row in part.live_rows():
        first, last = int(offsets[row]), int(offsets[row + 1])
        if first != stop or last - start > max(budget, 1):
            if stop > start:
                yield start, stop
            start = first
        stop = last
    if stop > start:
        yield start, stop
