"""The arrays that a search of impacts reads, and the memory that it works in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chamfer.core.types import F32, I32, I64, Array

_SPARE_ROWS = 1040  # sparse.c stores whole vectors, which may extend beyond the last row


@dataclass(frozen=True, slots=True)
class Impacts:
    """One segment: V terms, N rows, Z postings.

    offsets      i64 [V+1], documents u16 or i32 [Z] (ascending in a list), codes u8 [Z]: by term
    row_offsets  i64 [N+1], row_terms u16 or i32 [Z] (ascending in a row), row_values u8 or f32 [Z]: by row
    largest      f32 [V]: no row gains more than weight * largest[t] from a query's term t
    norms        f32 [N]
    saturating   a posting contributes code / (code + norms[row]); otherwise code * norms[row], or its f32 row value,
                 from which code * norms[row] differs by at most half a step, norms[row] / 2
    """

    offsets: I64
    documents: Array
    codes: Array
    largest: F32
    row_offsets: I64
    row_terms: Array
    row_values: Array
    norms: F32
    saturating: bool

    @property
    def n_documents(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def n_terms(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """One segment of a collection.

    local   i32 [vocabulary+1]: the segment's number of each term of the vocabulary, -1 if it has no such term; the last
            entry stands for all terms outside the vocabulary
    first   the row number in the collection of the segment's first row
    """

    impacts: Impacts
    local: I32
    first: int


@dataclass(frozen=True, slots=True)
class Queries:
    """Q queries: terms i32 [Zq] (each once in a query), weights f32 [Zq] > 0, offsets i64 [Q+1].

    reads i64 [Q] is 0 for an exact search. Otherwise the search is pruned: the first reads[q] lists alone select the
    `rescored` rows with the largest sums, ties by smaller row, and the k best of these by all terms are returned.
    """

    terms: I32
    weights: F32
    offsets: I64
    reads: I64
    rescored: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, query: int) -> tuple[I32, F32]:
        """One query's terms and weights."""
        span = slice(int(self.offsets[query]), int(self.offsets[query + 1]))
        return self.terms[span], self.weights[span]


class Scratch:
    """Working memory for searches of the same segments, one at a time; `scores` and `query` are zero between them."""

    def __init__(self, segments: Sequence[SegmentIndex], rescored: int) -> None:
        n_rows = max((segment.impacts.n_documents for segment in segments), default=0) + _SPARE_ROWS
        terms = max((segment.impacts.n_terms for segment in segments), default=0) + 1
        self.scores = np.zeros(n_rows, dtype=np.float32)
        self.query = np.zeros(terms, dtype=np.float32)
        self.uppers = np.empty(n_rows, dtype=np.float32)
        self.lowers = np.empty(n_rows, dtype=np.float32)
        self.rows = np.empty(n_rows, dtype=np.int32)
        self.hits = np.empty((n_rows, 2), dtype=np.int64)
        self.query_terms = np.empty((terms, 2), dtype=np.int64)
        self.best_sums = np.empty(n_rows + rescored, dtype=np.float32)
        self.best_rows = np.empty(n_rows + rescored, dtype=np.int64)
        self.rescored = rescored
        self.native: Any = None  # the structures of sparse.c that point into these arrays, created once
