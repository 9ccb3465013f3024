"""One vector a row, compressed and scanned whole: how such rows are packed, merged and searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from chamfer.artifact import ArrayStream
from chamfer.errors import InvalidInput
from chamfer.types import F32, I64, Array, Bool, Candidates
from indexing.family import SegmentPart, allowed_rows, starts_of
from indexing.kernels.scan import quantise_rows, scan_half, scan_int8
from indexing.kernels.topk import as_candidates, best, check_depth

_BLOCK_BYTES = 32 << 20


def pack_rows(values: F32, storage: Literal["int8", "float16"]) -> dict[str, Array]:
    """values i8 [N, D] with scales f32 [N], or values f16 [N, D]. InvalidInput where f16 overflows."""
    if storage == "int8":
        codes, scales = quantise_rows(values)
        return {"values": codes, "scales": scales}
    halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise InvalidInput("a vector is not finite as float16; set the channel's storage to int8")
    return {"values": halves}


def merge_rows(parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
    """The live rows of packed parts, in order; values are streamed."""
    first = parts[0].arrays["values"]
    n_rows = sum(part.n_live for part in parts)

    def chunks() -> Iterator[Array]:
        for part in parts:
            for rows in part.live_blocks(first.shape[1] * first.itemsize, _BLOCK_BYTES):
                yield part.arrays["values"][rows]

    out: dict[str, Array | ArrayStream] = {"values": ArrayStream(first.dtype, (n_rows, first.shape[1]), chunks())}
    if "scales" in parts[0].arrays:
        out["scales"] = np.concatenate([part.arrays["scales"][part.live_rows()] for part in parts])
    return out


class RowScan:
    """Packed rows of several parts, opened; every one is scored for every query."""

    def __init__(self, parts: Sequence[SegmentPart]) -> None:
        self._parts = parts
        # Views, not copies: numba takes plain arrays.
        self._arrays = [{name: np.asarray(array) for name, array in part.arrays.items()} for part in parts]

    def __len__(self) -> int:
        return int(starts_of(self._parts)[-1])

    def search(self, n_queries: int, encoded: F32 | None, k: int, allowed: Bool | None) -> Candidates:
        """The k best rows for queries f32 [Q, D]; nothing where `encoded` is None. Each query's bits are its own."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        if encoded is None or not len(self):
            return as_candidates([(np.empty(0, np.int64), np.empty(0, np.float32))] * n_queries, k)
        ranked: list[tuple[I64, F32]] = []
        for query in encoded:
            scores = np.concatenate([_scan(arrays, query) for arrays in self._arrays])
            if usable is not None:
                scores[~usable] = -np.inf
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)


def _scan(arrays: dict[str, Array], query: F32) -> F32:
    if "scales" in arrays:
        return scan_int8(arrays["values"], arrays["scales"], query)
    return scan_half(arrays["values"], query)
