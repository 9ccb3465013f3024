"""Filters that decide which candidates may serve as negatives: pure functions over the scores of one query's pool.

A pool has n candidates in rank order. A filter returns bool [n], true for the candidates that it drops. A candidate
without a score (NaN) is dropped by every filter that compares scores. The caller sets known positives aside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Bool


def outside_ranks(ranks: F32, first: int, last: int) -> Bool:
    """Candidates whose rank (from 1) is not in first..last. Most false negatives are at the head of the ranking.

    KaLM-Embedding-V2 (arXiv 2506.20923) takes 50-100, MM-Embed (arXiv 2411.02571) those below 45.
    """
    return ~((ranks >= first) & (ranks <= last))


def within_margin(scores: F32, positive: float, margin: float) -> Bool:
    """Candidates above positive - margin: UniME-V2's s > s_pos - beta (arXiv 2510.13515) and
    NV-Retriever's TopK-MarginPos (arXiv 2407.15831). A margin of 0 drops everything that scores above the positive.
    """
    return _above(scores, positive - margin)


def within_share(scores: F32, positive: float, share: float) -> Bool:
    """Candidates above positive - share * |positive|: NV-Retriever's TopK-PercPos (arXiv 2407.15831).

    The magnitude keeps the bound below the positive where scores are negative, as logits are.
    """
    return _above(scores, positive - share * abs(positive))


def above(scores: F32, maximum: float) -> Bool:
    """Candidates that score above `maximum`, independent of the positive's score."""
    return _above(scores, maximum)


def near_duplicates(similarity: F32, threshold: float) -> Bool:
    """Candidates whose similarity to a positive is at least `threshold`. NaN does not count as similar."""
    return np.nan_to_num(similarity, nan=-np.inf) >= threshold


def outside_clusters(cluster_ranks: F32, nearest: int) -> Bool:
    """Candidates whose cluster is not among the `nearest` to the query (LEMON); ranks f32 [n] count from 1."""
    return ~(cluster_ranks <= nearest)


def consistent(positive_ranks: Sequence[float] | F32, within: int) -> bool:
    """Whether any positive has a rank up to `within` (KaLM's ranking consistency); NaN: it was not retrieved."""
    return bool((np.asarray(positive_ranks, dtype=np.float32) <= within).any())


def outranking(ranks: F32, positive_ranks: F32) -> Bool:
    """Candidates ranked above every retrieved positive; every retrieved candidate if no positive was (all NaN)."""
    best = np.nanmin(np.append(positive_ranks, np.inf))
    return np.asarray(ranks < best, dtype=bool)


def cyclic(n: int, stride: int, keep: int) -> I64:
    """`keep` of n indices with a cyclic stride s: 0, s, 2s, ..., 1, s + 1, ...; i64 [min(n, keep)], in that order.

    UniME-V2 (arXiv 2510.13515) draws from the ranked candidates this way, to trade hardness for variety; stride 1
    keeps the hardest. Raises InvalidInput for a stride below 1.
    """
    if stride < 1:
        raise InvalidInput(f"the stride is {stride}, expected 1 or more")
    visited = [np.arange(start, n, stride, dtype=np.int64) for start in range(min(stride, n))]
    return np.concatenate([np.empty(0, dtype=np.int64), *visited])[:keep]


def nearest_clusters(vectors: F32, queries: F32, centres: F32) -> tuple[I64, I64]:
    """(cluster of each vector i64 [N], rank of each cluster by similarity to each query i64 [Q, C], from 1).

    Similarity is the inner product of unit vectors. LEMON (arXiv 2203.04703) draws negatives from the clusters nearest
    to the uncorrupted part of a triple; in retrieval that part is the query.
    """
    clusters = np.argmax(vectors @ centres.T, axis=1).astype(np.int64)
    order = np.argsort(-(queries @ centres.T), axis=1, kind="stable")
    cluster_ranks = np.empty_like(order, dtype=np.int64)
    np.put_along_axis(cluster_ranks, order, np.arange(1, len(centres) + 1, dtype=np.int64)[None], axis=1)
    return clusters, cluster_ranks


def _above(scores: F32, bound: float) -> Bool:
    return ~(scores <= np.float32(bound))
