"""Which lists a pruned search reads, and where it pays: the choice of the index, by the lengths of its lists.

A query's lists are read in the order of what they could give a row at most, divided by the root of their length, until
the rest could give no more than the share `pruning`; the rows with the largest sums are then scored by all terms. Long
lists of light terms are what learned sparse queries spend their time on and what decides least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I32, I64, Array, Bool
from chamfer.indexing.kernels.impacts import Asked, Part

RESCORED = 200  # rows that are scored by all terms, at least; and so many times k
RESCORED_FACTOR = 8
ROW_POSTINGS = 1500  # one such row, somewhere in memory, costs as much as this many postings of a list


def check_pruning(name: str, pruning: float) -> None:
    """InvalidInput unless it is a share."""
    if not 0 <= pruning < 1:
        raise InvalidInput(f"{name} pruning is {pruning}, expected 0 (exact) to below 1")


@dataclass(frozen=True, slots=True)
class Lists:
    """Over all segments, of each term and (last) of unknown ones: postings f64 [V+1], and the most that a row has of
    it, f64 [V+1]."""

    postings: Array
    most: Array


def lists_of(parts: Sequence[Part], vocabulary: int) -> Lists:
    """Lengths and largest weights of all lists, those of the parts together."""
    postings, most = np.zeros(vocabulary + 1), np.zeros(vocabulary + 1)
    for part in parts:
        known = np.flatnonzero(part.local >= 0)
        own = part.local[known]
        postings[known] += np.diff(part.impacts.offsets)[own]
        most[known] = np.maximum(most[known], part.impacts.largest[own])
    return Lists(postings, most)


def exact(terms: I32, weights: F32, offsets: I64) -> Asked:
    """Queries whose exact best rows are wanted."""
    return Asked(terms, weights, offsets, np.zeros(len(offsets) - 1, dtype=np.int64), 0)


def pruned(lists: Lists, asked: Asked, pruning: float, k: int, allowed: Bool | None) -> Asked:
    """The queries with their terms in the order of reading, and the number of lists that each reads.

    A query stays exact where less would be saved than twice what scoring costs: in small collections, and where a
    filter leaves so few rows that they can all be scored.
    """
    rescored = max(RESCORED, RESCORED_FACTOR * k)
    scoring = ROW_POSTINGS * rescored
    if allowed is not None and ROW_POSTINGS * np.count_nonzero(allowed) < scoring:
        return asked
    terms, weights, reads = asked.terms.copy(), asked.weights.copy(), asked.reads.copy()
    for query, (start, stop) in enumerate(zip(asked.offsets[:-1].tolist(), asked.offsets[1:].tolist(), strict=True)):
        own = slice(start, stop)
        postings = lists.postings.take(asked.terms[own], mode="clip")
        bounds = lists.most.take(asked.terms[own], mode="clip") * asked.weights[own]
        order = np.argsort(-bounds / np.sqrt(np.maximum(postings, 1)), kind="stable")
        reached = np.cumsum(bounds[order])
        if stop == start or reached[-1] <= 0:
            continue
        read = int(np.searchsorted(reached, (1 - pruning) * reached[-1])) + 1
        if postings[order[read:]].sum() < 2 * scoring:
            continue
        terms[own], weights[own] = terms[own][order], weights[own][order]
        reads[query] = read
    return Asked(terms, weights, asked.offsets, reads, rescored)
