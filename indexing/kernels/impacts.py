"""Exact top-k search of an inverted index of impacts, for BM25 and for learned sparse vectors alike.

A segment's postings lie twice: by term, as small codes that are added up to find the rows that could be among the k
best; and by row, with the values that scores are made of. The first has an error that is bounded, so that the rows it
lets through hold the true k best; their scores come from the second in a fixed order of additions. Hence results do not
depend on how documents lie in segments, on pruning, or on which of the compiled twins answered (ADR 2, ADR 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chamfer.core.types import F32, I32, I64, Array, Bool
from chamfer.indexing.kernels import _native_impacts, _numba_impacts


@dataclass(frozen=True, slots=True)
class Impacts:
    """One segment: V terms, N rows, Z postings.

    offsets      i64 [V+1], documents u16 or i32 [Z] (ascending in a list), codes u8 [Z]: by term
    row_offsets  i64 [N+1], row_terms u16 or i32 [Z] (ascending in a row), row_values u8 or f32 [Z]: by row
    largest      f32 [V]: no row gains more than weight * largest[t] from a query's term t
    norms        f32 [N]
    saturating   a posting gives code / (code + norms[row]); otherwise code * norms[row], or its f32 row value, from
                 which code * norms[row] is at most half a step norms[row] away
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
class Part:
    """A segment among others. local i32 [vocabulary+1]: its place of each term that queries name, -1 where it has none
    (the last stands for all terms beyond); first: its first row's number in the collection."""

    impacts: Impacts
    local: I32
    first: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Q queries: terms i32 [Zq] (each once in a query), weights f32 [Zq] > 0, offsets i64 [Q+1].

    reads i64 [Q] is 0 where the exact k best are wanted. Otherwise the search is pruned: the first reads[q] lists alone
    choose the `rescored` rows with the largest sums, ties by smaller row, and of those the k best are returned.
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
    """Working memory of one search at a time over the same parts; zero between searches."""

    def __init__(self, parts: Sequence[Part], rescored: int) -> None:
        room = max((part.impacts.n_documents for part in parts), default=0) + 1040
        terms = max((part.impacts.n_terms for part in parts), default=0) + 1
        self.scores = np.zeros(room, dtype=np.float32)
        self.query = np.zeros(terms, dtype=np.float32)
        self.uppers = np.empty(room, dtype=np.float32)
        self.lowers = np.empty(room, dtype=np.float32)
        self.rows = np.empty(room, dtype=np.int32)
        self.hits = np.empty((room, 2), dtype=np.int64)
        self.asked = np.empty((terms, 2), dtype=np.int64)
        self.best_sums = np.empty(room + rescored, dtype=np.float32)
        self.best_rows = np.empty(room + rescored, dtype=np.int64)
        self.rescored = rescored
        self.native: Any = None  # what sparse.c asks for, made once


def search(parts: Sequence[Part], scratch: Scratch, asked: Asked, k: int, allowed: Bool | None) -> tuple[I64, F32, I64]:
    """(rows i64 [Q, k], scores f32 [Q, k], counts i64 [Q]): the k best rows of each query, ties by smaller row.

    `allowed` holds the rows of all parts. Rows that share no term with a query are not returned. Part by part, the k-th
    best so far being a floor for the next; rows are scored directly where a filter leaves few. Cost: the postings of
    the query's terms; of a pruned search those of the lists that it reads, and of the rows that it scores.
    """
    found = _native_impacts.search(parts, scratch, asked, k, allowed)
    if found is not None:
        return found
    rows = np.empty((len(asked), k), dtype=np.int64)
    scores = np.empty((len(asked), k), dtype=np.float32)
    counts = np.zeros(len(asked), dtype=np.int64)
    for q in range(len(asked)):
        if asked.reads[q]:
            ranked = _search_pruned(parts, scratch, asked, q, allowed)
        else:
            ranked = np.empty(0, np.int64), np.empty(0, np.float32)
            for part in parts:
                floor = ranked[1][-1] if len(ranked[1]) == k else np.float32(0)
                own = _search_part(part, scratch, asked.of(q), k, allowed, floor)
                ranked = _best(np.concatenate([ranked[0], own[0]]), np.concatenate([ranked[1], own[1]]), k)
        ranked = _best(*ranked, k)
        counts[q] = len(ranked[0])
        rows[q, : counts[q]], scores[q, : counts[q]] = ranked
    return rows, scores, counts


def _best(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """The k largest scores, ties by smaller row."""
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _search_part(
    part: Part, scratch: Scratch, asked: tuple[I32, F32], k: int, allowed: Bool | None, floor: np.float32
) -> tuple[I64, F32]:
    """The numba twin's rows of one part (of the collection) and their scores."""
    mask = np.empty(0, dtype=np.bool_) if allowed is None else _mask(part, allowed)
    rows, scores = _numba_impacts.search(
        _by_term(part), _by_row(part), _mode(part), scratch.query, _known(part, asked), k, (mask, floor)
    )
    return rows + part.first, scores


def _search_pruned(
    parts: Sequence[Part], scratch: Scratch, asked: Asked, query: int, allowed: Bool | None
) -> tuple[I64, F32]:
    """The numba twin's rows of a pruned search (not only the k best) and their scores."""
    terms, weights = asked.of(query)
    read = terms[: asked.reads[query]], weights[: asked.reads[query]]
    sums = []
    for part in parts:
        own = _numba_impacts.sums(_by_term(part), part.impacts.norms, part.impacts.saturating, _known(part, read))
        sums.append(own if allowed is None else own * _mask(part, allowed))
    every = np.concatenate(sums)
    some = np.flatnonzero(every > 0)
    chosen = np.sort(_best(some, every[some], asked.rescored)[0])
    scores = []
    for part in parts:
        low, high = np.searchsorted(chosen, [part.first, part.first + part.impacts.n_documents])
        known, local = _known(part, (terms, weights)), chosen[low:high] - part.first
        scores.append(_numba_impacts.score_rows(_by_row(part), _mode(part), scratch.query, known, local))
    return chosen, np.concatenate(scores)


def _by_term(part: Part) -> tuple[Array, ...]:
    return part.impacts.offsets, part.impacts.documents, part.impacts.codes


def _by_row(part: Part) -> tuple[Array, ...]:
    own = part.impacts
    return own.row_offsets, own.row_terms, own.row_values, own.norms


def _mode(part: Part) -> tuple[bool, bool]:
    return part.impacts.saturating, part.impacts.row_values.dtype == np.float32


def _known(part: Part, asked: tuple[I32, F32]) -> tuple[I32, F32]:
    """The part's places of the terms that it has, with their weights."""
    places = part.local.take(asked[0], mode="clip")
    return places[places >= 0], asked[1][places >= 0]


def _mask(part: Part, allowed: Bool) -> Bool:
    """The part's share of `allowed`."""
    return np.ascontiguousarray(allowed[part.first : part.first + part.impacts.n_documents])


def invert(row_offsets: I64, row_terms: Array, n_terms: int) -> tuple[I64, Array, I64]:
    """Postings that lie by row, put by term: (offsets i64 [V+1], documents u16 or i32 [Z], their order i64 [Z]).

    Documents ascend in a list. Cost O(Z) for u16 terms (radix sort), O(Z log Z) for i32.
    """
    n_rows = len(row_offsets) - 1
    order = np.argsort(row_terms, kind="stable")
    owners = np.repeat(narrow(np.arange(n_rows), n_rows), np.diff(row_offsets))
    offsets = np.zeros(n_terms + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_terms, minlength=n_terms), out=offsets[1:])
    return offsets, owners[order], order


def narrow(numbers: Array, below: int) -> Array:
    """Numbers in 0..below-1 as u16 where they fit, else i32."""
    return numbers.astype(np.uint16 if below <= 1 << 16 else np.int32)


def quantise(weights: F32, row_offsets: I64) -> tuple[Array, F32]:
    """(codes u8 [Z] in 1..255, scales f32 [N]): a row's weights > 0 in steps of 1/255 of its largest."""
    lengths = np.diff(row_offsets)
    largest = np.zeros(len(lengths), dtype=np.float32)
    filled = lengths > 0
    if filled.any():
        largest[filled] = np.maximum.reduceat(weights, row_offsets[:-1][filled])
    scales = largest / np.float32(255)
    codes = np.rint(weights / np.repeat(scales, lengths))
    return np.clip(codes, 1, 255).astype(np.uint8), scales
