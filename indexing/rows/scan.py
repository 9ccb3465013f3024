"""One vector a row, stored as chamfer.indexing.rows.storage says and scanned whole: how such rows are merged and
searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.types import F32, I64, Array, Bool, Candidates
from chamfer.indexing.families.family import SegmentPart, allowed_rows, starts_of
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth
from chamfer.indexing.rows.storage import Storage

_BLOCK_BYTES = 32 << 20


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

    def __init__(self, parts: Sequence[SegmentPart], storage: Storage) -> None:
        self._parts = parts
        # Views, not copies: numba takes plain arrays.
        arrays = [{name: np.asarray(array) for name, array in part.arrays.items()} for part in parts]
        self._scans = [storage.scanner(own, {}) for own in arrays]

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
            scores = np.concatenate([scan(query) for scan in self._scans])
            if usable is not None:
                scores[~usable] = -np.inf
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)
