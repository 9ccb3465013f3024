"""Packs, merges and searches postings of any terms and values, for the channels `lexical` and `sparse`.

A segment's arrays: terms [V] (names, ascending). By term: offsets i64 [V+1], documents u16 or i32 [Z], codes u8 [Z],
largest [V]. By row: row_offsets i64 [N+1], row_terms u16 or i32 [Z] (positions in `terms`, ascending in a row),
row_values [Z].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chamfer.core.types import F32, I32, I64, Array, Bool, Candidates, SparseVectors, join_offsets, ragged_index
from chamfer.indexing.families.inverted.list_pruning import exact, lists_of, pruned
from chamfer.indexing.kernels.impact_types import Impacts, Scratch, SegmentIndex
from chamfer.indexing.kernels.impacts import invert, narrow, search
from chamfer.indexing.kernels.topk import check_depth
from chamfer.indexing.rows.segment_part import SegmentPart, allowed_rows, locate, starts_of


@dataclass(frozen=True, slots=True)
class Postings:
    """Postings by row: names [V] ascending, positions [Z] in `names` (ascending within a row), values [Z]."""

    row_offsets: I64
    names: Array
    positions: Array
    values: Array


def pack_postings(postings: Postings, codes: Array, weights: Array) -> dict[str, Array]:
    """The arrays of a segment. Drops names without postings; `largest` [V] holds the largest weight of each list."""
    used = np.bincount(postings.positions, minlength=len(postings.names)) > 0
    names = postings.names[used]
    row_terms = narrow((np.cumsum(used) - 1)[postings.positions], len(names))
    offsets, documents, order = invert(postings.row_offsets, row_terms, len(names))
    return {
        "terms": names,
        "offsets": offsets,
        "documents": documents,
        "codes": codes[order],
        "largest": np.maximum.reduceat(weights[order], offsets[:-1]) if len(names) else weights[:0],
        "row_offsets": postings.row_offsets,
        "row_terms": row_terms,
        "row_values": postings.values,
    }


def live_postings(parts: Sequence[SegmentPart]) -> Postings:
    """The postings of the live rows of all parts, in order."""
    names = union([part.arrays["terms"] for part in parts])
    offsets, positions, values = [], [], []
    for part in parts:
        index, row_offsets = ragged_index(np.asarray(part.arrays["row_offsets"]), part.live_rows())
        offsets.append(row_offsets)
        positions.append(np.searchsorted(names, part.arrays["terms"])[part.arrays["row_terms"][index]])
        values.append(part.arrays["row_values"][index])
    return Postings(join_offsets(offsets), names, np.concatenate(positions), np.concatenate(values))


def union(names: Sequence[Array]) -> Array:
    """The union of several ascending lists of names, ascending: [V]."""
    if len(names) == 1:
        return np.asarray(names[0])
    return np.unique(np.concatenate(names)) if names else np.empty(0, dtype=np.uint64)


def positions_of(names: Array, wanted: Array) -> I64:
    """Position of each wanted name among the ascending names, -1 if it is absent: i64 [n]."""
    if not len(names):
        return np.full(len(wanted), -1, dtype=np.int64)
    positions = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(np.asarray(names)[positions] == wanted, positions, -1).astype(np.int64)


class ImpactIndex:
    """The opened segments of one channel. Query terms are numbered 0..V-1 across all segments."""

    def __init__(
        self, parts: Sequence[SegmentPart], impacts: Sequence[Impacts], numbers: Sequence[Array], vocabulary: int
    ) -> None:
        """`numbers` [V of the part] are the terms' numbers in 0..vocabulary-1, ascending."""
        self.vocabulary = vocabulary
        self._parts = parts
        self._starts = starts_of(parts)
        self._impacts = impacts
        self._numbers = numbers
        each = zip(impacts, numbers, self._starts[:-1].tolist(), strict=True)
        segments = [SegmentIndex(postings, _inverse(terms, vocabulary), first) for postings, terms, first in each]
        self._segments = [segment for segment in segments if segment.impacts.n_documents]
        self._lists = lists_of(self._segments, vocabulary)
        self._pool: deque[Scratch] = deque()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, queries: SparseVectors, weights: F32, k: int, allowed: Bool | None, pruning: float) -> Candidates:
        """The k best rows per query; `weights` f32 [Zq] replace those of the queries."""
        check_depth(k)
        k = min(k, len(self))
        usable = allowed_rows(self._parts, allowed)
        weighted = exact(queries.terms, weights, queries.offsets)
        if pruning:
            weighted = pruned(self._lists, weighted, pruning, k, usable)
        try:
            scratch = self._pool.pop()
        except IndexError:
            scratch = Scratch(self._segments, weighted.rescored)
        if scratch.rescored < weighted.rescored:
            scratch = Scratch(self._segments, weighted.rescored)
        result = search(self._segments, scratch, weighted, k, usable)
        self._pool.append(scratch)  # not returned after an error, which may leave it dirty
        return _padded(*result)

    def vectors(self, rows: Sequence[int] | I64) -> SparseVectors:
        """The stored vectors of rows (for BM25, term frequencies). InvalidInput for a row that does not exist."""
        part_of, local = locate(self._starts, np.asarray(rows, dtype=np.int64))
        weights, terms, lengths = [np.empty(0, np.float32)], [np.empty(0, np.int32)], []
        for number, row in zip(part_of.tolist(), local.tolist(), strict=True):
            impacts = self._impacts[number]
            span = slice(int(impacts.row_offsets[row]), int(impacts.row_offsets[row + 1]))
            values = impacts.row_values[span].astype(np.float32)
            scaled = impacts.row_values.dtype == np.uint8 and not impacts.saturating
            weights.append(values * impacts.norms[row] if scaled else values)
            terms.append(self._numbers[number][impacts.row_terms[span]].astype(np.int32))
            lengths.append(span.stop - span.start)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return SparseVectors(np.concatenate(weights), np.concatenate(terms), offsets, self.vocabulary)


def _padded(rows: I64, scores: F32, counts: I64) -> Candidates:
    """Candidates of rows and scores [Q, k] of which each query has the first `counts`."""
    width = int(counts.max(initial=0))
    rows, scores = rows[:, :width], scores[:, :width]
    if counts.min(initial=width) < width:
        beyond = np.arange(width) >= counts[:, None]
        rows, scores = np.where(beyond, -1, rows), np.where(beyond, np.float32(-np.inf), scores)
    return Candidates(np.ascontiguousarray(rows), np.ascontiguousarray(scores))


def _inverse(numbers: Array, vocabulary: int) -> I32:
    """The segment's number of each term of the vocabulary i32 [V+1], -1 if it lacks the term; last, unknown terms.

    numbers [V of the segment]: the vocabulary's number of each term of the segment.
    """
    local = np.full(vocabulary + 1, -1, dtype=np.int32)
    local[numbers] = np.arange(len(numbers), dtype=np.int32)
    return local
