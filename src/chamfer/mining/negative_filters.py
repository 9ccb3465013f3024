"""Which candidates may serve as negatives: plain functions over the scores of one query's pool.

n candidates, in rank order. A filter returns bool [n], true where it drops; NaN (never scored) is dropped wherever a
score decides, since nothing speaks for it. Known positives are the caller's matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Bool

KEPT, POSITIVE, WRONG = "kept", "positive", "wrong_modality"


def outside_ranks(ranks: F32, first: int, last: int) -> Bool:
    """Candidates whose rank (from 1) is not in first..last; the head of a list is where false negatives stand.

    KaLM-Embedding-V2 (arXiv 2506.20923) takes 50-100, MM-Embed (arXiv 2411.02571) those below 45.
    """
    return ~((ranks >= first) & (ranks <= last))


def within_margin(scores: F32, positive: float, margin: float) -> Bool:
    """Candidates above positive - margin: UniME-V2's s > s_pos - beta (arXiv 2510.13515) and
    NV-Retriever's TopK-MarginPos (arXiv 2407.15831). A margin of 0 drops whatever scores above the positive itself.
    """
    return _above(scores, positive - margin)


def within_share(scores: F32, positive: float, share: float) -> Bool:
    """Candidates above positive - share * |positive|: NV-Retriever's TopK-PercPos (arXiv 2407.15831).

    The magnitude keeps the bound below the positive where scores are negative, as logits are.
    """
    return _above(scores, positive - share * abs(positive))


def above(scores: F32, most: float) -> Bool:
    """Candidates that score above `most`, whatever the positive scores."""
    return _above(scores, most)


def alike(similarity: F32, most: float) -> Bool:
    """Candidates at least `most` similar to a positive: the same text, or nearly. NaN is not alike."""
    return np.nan_to_num(similarity, nan=-np.inf) >= most


def outside_clusters(places: F32, nearest: int) -> Bool:
    """Candidates whose cluster is not among the `nearest` to the query (LEMON); places f32 [n] count from 1."""
    return ~(places <= nearest)


def consistent(positive_ranks: Sequence[float] | F32, within: int) -> bool:
    """Whether some positive is among the first `within` (KaLM's ranking consistency); NaN is a positive not found."""
    return bool((np.asarray(positive_ranks, dtype=np.float32) <= within).any())


def outranking(ranks: F32, positive_ranks: F32) -> Bool:
    """Candidates that stand above every positive that was found; all that were found if none was (NaN)."""
    best = np.nanmin(np.append(positive_ranks, np.inf))
    return np.asarray(ranks < best, dtype=bool)


def cyclic(n: int, stride: int, keep: int) -> I64:
    """`keep` of n places by a cyclic stride: 0, s, 2s, ... then 1, s + 1, ...; i64 [min(n, keep)], in that order.

    UniME-V2 draws so from the ranked survivors, to trade hardness for variety; stride 1 keeps the hardest.
    """
    if stride < 1:
        raise InvalidInput(f"the stride is {stride}, expected 1 or more")
    visited = [np.arange(start, n, stride, dtype=np.int64) for start in range(min(stride, n))]
    return np.concatenate([np.empty(0, dtype=np.int64), *visited])[:keep]


def nearest_clusters(vectors: F32, queries: F32, centres: F32) -> tuple[I64, I64]:
    """(cluster of each vector i64 [N], place of each cluster by nearness to each query i64 [Q, C] from 1).

    Nearness is the inner product of unit vectors. LEMON (arXiv 2203.04703) draws negatives from the clusters nearest
    to what a corrupted triple keeps; in retrieval that is the query.
    """
    own = np.argmax(vectors @ centres.T, axis=1).astype(np.int64)
    order = np.argsort(-(queries @ centres.T), axis=1, kind="stable")
    places = np.empty_like(order, dtype=np.int64)
    np.put_along_axis(places, order, np.arange(1, len(centres) + 1, dtype=np.int64)[None], axis=1)
    return own, places


def fates(n: int, positive: Bool, dropped: Sequence[tuple[str, Bool]], stride: int, keep: int) -> list[str]:
    """What became of each candidate: "positive", "kept", the first filter that dropped it, or "not_drawn"."""
    out = np.full(n, KEPT, dtype=object)
    for reason, where in reversed(dropped):
        out[where] = reason
    out[positive] = POSITIVE
    survivors = np.flatnonzero(out == KEPT)
    drawn = survivors[cyclic(len(survivors), stride, keep)]
    out[np.setdiff1d(survivors, drawn)] = "not_drawn"
    return [str(fate) for fate in out]


def _above(scores: F32, bound: float) -> Bool:
    return ~(scores <= np.float32(bound))
