"""Brute-force search over one stored vector per document: scores all rows, or only the allowed ones if they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chamfer.core.types import F32, I64, Array, Bool, Candidates
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth
from chamfer.indexing.rows.segment_part import Codec, SegmentPart, allowed_rows, locate, part_of_mask, starts_of
from chamfer.indexing.rows.storage.protocol import Scan, Storage

GATHER_SHARE = 0.25  # share of a segment's rows up to which copying the allowed ones costs less than scoring all
_COPIED_BYTES = 64 << 20


def few_rows(usable: Bool | None) -> I64 | None:
    """The usable rows of a segment i64 [n], ascending, if they are few enough to copy; otherwise None."""
    if usable is None or np.count_nonzero(usable) > GATHER_SHARE * len(usable):
        return None
    return np.flatnonzero(usable).astype(np.int64, copy=False)


class RowScan:
    """The stored rows of several segments, opened."""

    def __init__(self, parts: Sequence[SegmentPart], storage: Storage, codec: Codec, names: Sequence[str]) -> None:
        """names: the arrays of the storage. `search` needs the storage's codec, if it has one."""
        self._parts = parts
        self._storage = storage
        self._codec = codec
        self.starts = starts_of(parts)
        # Views, not copies: numba takes plain arrays.
        self.arrays = [{name: np.asarray(part.arrays[name]) for name in names} for part in parts]
        self._scans: dict[int, Scan] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def usable(self, allowed: Bool | None) -> Bool | None:
        """The live and allowed rows; see allowed_rows."""
        return allowed_rows(self._parts, allowed)

    def search(self, n_queries: int, encoded: F32 | None, k: int, allowed: Bool | None) -> Candidates:
        """The k best rows for queries f32 [Q, D]; no candidates if `encoded` is None.

        A query's result does not depend on the other queries, and a row's score not on the filter.
        """
        check_depth(k)
        usable = self.usable(allowed)
        if encoded is None or not len(self):
            return no_candidates(n_queries, k)
        scans = [self.usable_scan(number, usable) for number in range(len(self.arrays))]
        return as_candidates([rank([(rows, scan(query)) for rows, scan in scans], k) for query in encoded], k)

    def usable_scan(self, number: int, usable: Bool | None) -> tuple[I64, Scan]:
        """(the usable rows of one part, numbered in the collection; the scan that scores these)."""
        first, mask = int(self.starts[number]), part_of_mask(self.starts, number, usable)
        if mask is None:
            return np.arange(first, self.starts[number + 1], dtype=np.int64), self._whole_scan(number)
        if (few := few_rows(mask)) is not None:
            return first + few, self.scan_of(number, few)
        rows, whole = np.flatnonzero(mask), self._whole_scan(number)
        return first + rows, lambda query: whole(query)[rows]

    def scan_of(self, number: int, rows: I64) -> Scan:
        """The scan of the given rows of one part; it reads no others.

        They are copied: once if they are small together, otherwise block by block for every query.
        """
        arrays = self.arrays[number]
        step = max(1, _COPIED_BYTES // max(1, sum(array[:1].nbytes for array in arrays.values())))
        if len(rows) <= step:
            return self._storage.scanner(_taken(arrays, rows), self._codec)

        def scan(query: F32) -> F32:
            blocks = (rows[start : start + step] for start in range(0, len(rows), step))
            return np.concatenate(
                [self._storage.scanner(_taken(arrays, block), self._codec)(query) for block in blocks]
            )

        return scan

    def vectors(self, rows: I64, dim: int) -> F32:
        """The stored vectors f32 [K, dim] of rows."""
        part_of, local = locate(self.starts, rows)
        vectors = np.empty((len(rows), dim), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            vectors[here] = self._storage.unpack(_taken(self.arrays[number], local[here]), self._codec)
        return vectors

    def _whole_scan(self, number: int) -> Scan:
        if number not in self._scans:
            self._scans[number] = self._storage.scanner(self.arrays[number], self._codec)
        return self._scans[number]


def rank(scored: Sequence[tuple[I64, F32]], k: int) -> tuple[I64, F32]:
    """The k best of (rows, scores) of successive parts, highest first, ties by smaller row."""
    rows = np.concatenate([rows for rows, _ in scored])
    scores = np.concatenate([scores for _, scores in scored])
    chosen = best(scores, k)
    return rows[chosen], scores[chosen]


def no_candidates(n_queries: int, k: int) -> Candidates:
    """Empty candidates for every query."""
    return as_candidates([(np.empty(0, np.int64), np.empty(0, np.float32))] * n_queries, k)


def _taken(arrays: Mapping[str, Array], rows: I64) -> dict[str, Array]:
    return {name: array[rows] for name, array in arrays.items()}
