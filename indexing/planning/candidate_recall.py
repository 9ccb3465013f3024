"""The share of the exact top k among a source's candidates, and its change as a collection grows.

Everything is computed from one table: the rank that a source gives to each of the exact top k. Ranks within a part of
the collection need no further search, since no score depends on the other documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from chamfer.core.types import F32, I64, Bool, Candidates, TokenVectors

ABSENT = int(np.iinfo(np.int64).max)
TARGETS = (0.90, 0.95, 0.99)
_SMALLEST_PART = 100
_DRAWS = 4
_EXACT_DEPTH = 100

Ranks = Callable[[Bool | None], I64]
"""Returns the ranks i64 [Q, k] within a part of the collection (bool [N], None for all); see `ranks_of_best`."""


class ExactScorer(Protocol):
    """A retriever of exact MaxSim that can also score given rows, faster and with rounding errors."""

    def __len__(self) -> int: ...
    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates: ...
    def score(self, queries: TokenVectors, rows: I64) -> F32: ...


def rank_by_maxsim(scorer: ExactScorer, queries: TokenVectors) -> Candidates:
    """All rows for every query: the best 100 in exact order, the others by the fast score. Scores are -rank."""
    n = len(scorer)
    every = np.arange(n, dtype=np.int64)[None]
    order = np.empty((len(queries), n), dtype=np.int64)
    for number in range(len(queries) if n else 0):
        query = queries.take([number])
        fast = scorer.score(query, every)[0]
        best = scorer.search(query, min(_EXACT_DEPTH, n)).of(0)[0]
        fast[best] = np.inf
        order[number] = np.concatenate([best, np.argsort(-fast, kind="stable")[len(best) :]])
    return Candidates(order, np.tile(-np.arange(n, dtype=np.float32), (len(queries), 1)))


def ranks_of_best(candidates: Candidates, exact: Candidates, k: int, members: Bool | None = None) -> I64:
    """i64 [Q, k]: the rank in `candidates`, from 1, of each of the exact top k rows; ABSENT for rows that are missing.

    `exact` ranks every row. `members` bool [N] restricts both rankings to a part of the collection. k is lowered to the
    number of rows.
    """
    n = exact.depth if members is None else int(np.count_nonzero(members))
    ranks = np.full((len(exact), min(k, n)), ABSENT, dtype=np.int64)
    for query in range(len(exact)):
        best, rows = exact.of(query)[0], candidates.of(query)[0]
        if members is not None:
            best, rows = best[members[best]], rows[members[rows]]
        rank = np.full(exact.depth, ABSENT, dtype=np.int64)
        rank[rows] = np.arange(1, len(rows) + 1)
        ranks[query] = rank[best[:k]]
    return ranks


def ranks_of_union(parts: Sequence[I64]) -> I64:
    """Ranks in a union to which each of S sources contributes equally many candidates: S times the smallest rank.

    At a total depth d, each contributes d / S. Documents from several sources make the union smaller than d.
    """
    least = np.minimum.reduce(list(parts))
    return np.where(least == ABSENT, ABSENT, np.minimum(least, ABSENT // len(parts)) * len(parts))


def recall(ranks: I64, depth: int) -> float:
    """The share of the exact top k among the first `depth` candidates, mean over queries (all have the same k)."""
    return float((ranks <= depth).mean()) if ranks.size else 1.0


def needed(ranks: I64, target: float) -> int | None:
    """The smallest depth at which `recall` reaches the target; None if no depth does."""
    if not ranks.size:
        return 0
    ordered = np.sort(ranks, axis=None)
    depth = int(ordered[max(int(np.ceil(target * ranks.size - 1e-9)), 1) - 1])
    return None if depth == ABSENT else depth


def growth(ranks: Ranks, n: int, seed: int = 1) -> float:
    """The exponent g with which the depth needed for a recall grows: needed(N) = needed(n) (N / n)^g, 0 <= g <= 1.

    Fitted by least squares of log needed on log size, with one intercept per target, over nested random halves of the n
    documents down to 100, four times. g = 0: the depth does not grow. g = 1: wrong documents grow in proportion to the
    collection, the worst case for documents like the sample's; also returned if the sample is too small to tell.
    """
    whole = ranks(None)
    points: list[tuple[int, float, float]] = []
    for draw in np.random.default_rng(seed).spawn(_DRAWS):
        order = draw.permutation(n)
        size = n // 2
        while size >= _SMALLEST_PART:
            members = np.zeros(n, dtype=bool)
            members[order[:size]] = True
            points += _needs(ranks(members), size)
            size //= 2
    if not points:
        return 1.0
    points += _needs(whole, n) * _DRAWS
    covariance = variance = 0.0
    for number in range(len(TARGETS)):
        selected = np.array([(x, y) for target, x, y in points if target == number])
        if len(selected):
            x, y = (selected - selected.mean(axis=0)).T
            covariance += float(x @ y)
            variance += float(x @ x)
    return min(1.0, max(0.0, covariance / variance)) if variance > 0 else 1.0


def _needs(ranks: I64, size: int) -> list[tuple[int, float, float]]:
    depths = [needed(ranks, target) for target in TARGETS]
    return [(number, float(np.log(size)), float(np.log(d))) for number, d in enumerate(depths) if d]
