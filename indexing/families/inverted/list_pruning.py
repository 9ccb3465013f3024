"""Which postings lists a pruned search reads, and when pruning is worthwhile.

A query's lists are read in descending order of the largest contribution that they can make to a row, divided by the
square root of their length, until the remaining lists can contribute no more than the share `pruning`. The rows with
the largest sums are then scored by all terms. Learned sparse queries spend most of their time on long lists of light
terms, which matter least to the ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I32, I64, Array, Bool
from chamfer.indexing.kernels.impact_types import Queries, SegmentIndex

RESCORED = 200  # at least this many rows, and at least RESCORED_FACTOR k, are scored by all terms
RESCORED_FACTOR = 8
ROW_POSTINGS = 1500  # scoring a row, scattered in memory, costs as much as reading this many postings


def check_pruning(name: str, pruning: float) -> None:
    """Raises InvalidInput unless 0 <= pruning < 1."""
    if not 0 <= pruning < 1:
        raise InvalidInput(f"{name} pruning is {pruning}, expected 0 (exact) to below 1")


@dataclass(frozen=True, slots=True)
class Lists:
    """The number of postings of each term f64 [V+1] and its largest weight in a row f64 [V+1], over all segments.

    The last entry stands for unknown terms.
    """

    postings: Array
    largest: Array


def lists_of(segments: Sequence[SegmentIndex], vocabulary: int) -> Lists:
    """Lengths and largest weights of the lists of all segments together."""
    postings, largest = np.zeros(vocabulary + 1), np.zeros(vocabulary + 1)
    for segment in segments:
        terms = np.flatnonzero(segment.local >= 0)
        local = segment.local[terms]
        postings[terms] += np.diff(segment.impacts.offsets)[local]
        largest[terms] = np.maximum(largest[terms], segment.impacts.largest[local])
    return Lists(postings, largest)


def exact(terms: I32, weights: F32, offsets: I64) -> Queries:
    """Queries for an exact search."""
    return Queries(terms, weights, offsets, np.zeros(len(offsets) - 1, dtype=np.int64), 0)


def pruned(lists: Lists, queries: Queries, pruning: float, k: int, allowed: Bool | None) -> Queries:
    """The queries with their terms in the order of reading, and the number of lists that each query reads.

    A query stays exact if pruning would save less than twice what rescoring costs: in small collections, and where a
    filter leaves so few rows that all of them can be scored.
    """
    rescored = max(RESCORED, RESCORED_FACTOR * k)
    rescoring = ROW_POSTINGS * rescored
    if allowed is not None and ROW_POSTINGS * np.count_nonzero(allowed) < rescoring:
        return queries
    terms, weights, reads = queries.terms.copy(), queries.weights.copy(), queries.reads.copy()
    ends = zip(queries.offsets[:-1].tolist(), queries.offsets[1:].tolist(), strict=True)
    for query, (start, stop) in enumerate(ends):
        span = slice(start, stop)
        postings = lists.postings.take(queries.terms[span], mode="clip")
        bounds = lists.largest.take(queries.terms[span], mode="clip") * queries.weights[span]
        order = np.argsort(-bounds / np.sqrt(np.maximum(postings, 1)), kind="stable")
        reached = np.cumsum(bounds[order])
        if stop == start or reached[-1] <= 0:
            continue
        read = int(np.searchsorted(reached, (1 - pruning) * reached[-1])) + 1
        if postings[order[read:]].sum() < 2 * rescoring:
            continue
        terms[span], weights[span] = terms[span][order], weights[span][order]
        reads[query] = read
    return Queries(terms, weights, queries.offsets, reads, rescored)
