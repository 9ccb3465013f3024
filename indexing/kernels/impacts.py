"""Exact top-k search of an inverted index of impacts, for BM25 and for learned sparse vectors alike.

A segment stores its postings twice. By term, as small codes whose sums select the rows that may be among the k best;
the error of a sum is bounded, so that the true k best are always selected. By row, with the values from which the
scores of the selected rows are added up in a fixed order. Hence results depend neither on the division of documents
into segments nor on which of the compiled twins ran (ADR 2, ADR 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.types import F32, I32, I64, Array, Bool
from chamfer.indexing.kernels import _native_impacts, _numba_impacts
from chamfer.indexing.kernels.impact_types import Queries, Scratch, SegmentIndex


def search(
    segments: Sequence[SegmentIndex], scratch: Scratch, queries: Queries, k: int, allowed: Bool | None
) -> tuple[I64, F32, I64]:
    """(rows i64 [Q, k], scores f32 [Q, k], counts i64 [Q]): the k best rows of each query, ties by smaller row.

    `allowed` bool covers the rows of all segments. Rows that share no term with a query are not returned. Segments are
    searched one after another, and the k-th best score so far is a floor for the next. Cost: the postings of the
    query's terms; for a pruned search those of the lists that it reads and of the rows that it scores. If a filter
    leaves few rows, the C code scores them directly, whereas the numba twin still reads every list of an exact search.
    """
    native = _native_impacts.search(segments, scratch, queries, k, allowed)
    if native is not None:
        return native
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    counts = np.zeros(len(queries), dtype=np.int64)
    for q in range(len(queries)):
        if queries.reads[q]:
            ranked = _search_pruned(segments, scratch, queries, q, allowed)
        else:
            ranked = np.empty(0, np.int64), np.empty(0, np.float32)
            for segment in segments:
                floor = ranked[1][-1] if len(ranked[1]) == k else np.float32(0)
                hits = _search_segment(segment, scratch, queries.of(q), k, allowed, floor)
                ranked = _best(np.concatenate([ranked[0], hits[0]]), np.concatenate([ranked[1], hits[1]]), k)
        ranked = _best(*ranked, k)
        counts[q] = len(ranked[0])
        rows[q, : counts[q]], scores[q, : counts[q]] = ranked
    return rows, scores, counts


def _best(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """The k largest scores, ties by smaller row."""
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _search_segment(
    segment: SegmentIndex, scratch: Scratch, query: tuple[I32, F32], k: int, allowed: Bool | None, floor: np.float32
) -> tuple[I64, F32]:
    """The rows of one segment that may be among the k best, numbered in the collection, and their scores."""
    mask = np.empty(0, dtype=np.bool_) if allowed is None else _mask(segment, allowed)
    rows, scores = _numba_impacts.search(
        _by_term(segment),
        _by_row(segment),
        _mode(segment),
        scratch.query,
        _local_terms(segment, query),
        k,
        (mask, floor),
    )
    return rows + segment.first, scores


def _search_pruned(
    segments: Sequence[SegmentIndex], scratch: Scratch, queries: Queries, number: int, allowed: Bool | None
) -> tuple[I64, F32]:
    """The rows that a pruned search rescores (more than the k best), and their scores."""
    terms, weights = queries.of(number)
    read = terms[: queries.reads[number]], weights[: queries.reads[number]]
    sums = []
    for segment in segments:
        impacts = segment.impacts
        each = _numba_impacts.sums(_by_term(segment), impacts.norms, impacts.saturating, _local_terms(segment, read))
        sums.append(each if allowed is None else each * _mask(segment, allowed))
    all_sums = np.concatenate(sums)
    matching = np.flatnonzero(all_sums > 0)
    chosen = np.sort(_best(matching, all_sums[matching], queries.rescored)[0])
    scores = []
    for segment in segments:
        low, high = np.searchsorted(chosen, [segment.first, segment.first + segment.impacts.n_documents])
        query, rows = _local_terms(segment, (terms, weights)), chosen[low:high] - segment.first
        scores.append(_numba_impacts.score_rows(_by_row(segment), _mode(segment), scratch.query, query, rows))
    return chosen, np.concatenate(scores)


def _by_term(segment: SegmentIndex) -> tuple[Array, ...]:
    return segment.impacts.offsets, segment.impacts.documents, segment.impacts.codes


def _by_row(segment: SegmentIndex) -> tuple[Array, ...]:
    impacts = segment.impacts
    return impacts.row_offsets, impacts.row_terms, impacts.row_values, impacts.norms


def _mode(segment: SegmentIndex) -> tuple[bool, bool]:
    return segment.impacts.saturating, segment.impacts.row_values.dtype == np.float32


def _local_terms(segment: SegmentIndex, query: tuple[I32, F32]) -> tuple[I32, F32]:
    """The segment's numbers of those of the query's terms that it has, and their weights."""
    terms, weights = query
    numbers = segment.local.take(terms, mode="clip")
    return numbers[numbers >= 0], weights[numbers >= 0]


def _mask(segment: SegmentIndex, allowed: Bool) -> Bool:
    """The slice of `allowed` that covers the segment."""
    return np.ascontiguousarray(allowed[segment.first : segment.first + segment.impacts.n_documents])


def invert(row_offsets: I64, row_terms: Array, n_terms: int) -> tuple[I64, Array, I64]:
    """Postings by row, rearranged by term: (offsets i64 [V+1], documents u16 or i32 [Z], their order i64 [Z]).

    Documents ascend within a list. Cost O(Z) for u16 terms (radix sort), O(Z log Z) for i32.
    """
    n_rows = len(row_offsets) - 1
    order = np.argsort(row_terms, kind="stable")
    owners = np.repeat(narrow(np.arange(n_rows), n_rows), np.diff(row_offsets))
    offsets = np.zeros(n_terms + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_terms, minlength=n_terms), out=offsets[1:])
    return offsets, owners[order], order


def narrow(numbers: Array, below: int) -> Array:
    """Numbers in 0..below-1, as u16 where they fit and as i32 otherwise."""
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
