"""The k best of many scores, ties by smaller row, however the scores were divided into blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Array, Candidates

_LOWEST = np.float32(-np.inf)


def check_depth(k: int) -> None:
    """Raises InvalidInput unless k is a whole number and at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInput(f"k is {k!r}, expected a whole number, at least 1")


def best(scores: F32, k: int) -> I64:
    """Positions i64 [<=k] of the k highest scores f32 [N], highest first, ties by smaller position.

    Scores of -inf are never returned. Cost O(N + k log k).
    """
    if k >= len(scores):
        positions = np.flatnonzero(scores > _LOWEST)
    else:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero((scores >= kth) & (scores > _LOWEST))
    order = np.argsort(-scores[positions], kind="stable")
    return positions[order[:k]].astype(np.int64, copy=False)


def near_best(scores: F32, k: int, margin: float) -> I64:
    """Positions whose true score may be among the k best if the error of every score f32 [N] is at most `margin`.

    If the k-th best approximate score is s, at least k true scores are >= s - margin, and a row whose approximate
    score is below s - 2 margin has a true score below that.
    """
    if k >= len(scores):
        return np.flatnonzero(scores > _LOWEST).astype(np.int64, copy=False)
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    lowest = np.nextafter(np.float32(kth - 2 * margin), _LOWEST) if np.isfinite(kth) else _LOWEST
    return np.flatnonzero((scores >= lowest) & (scores > _LOWEST)).astype(np.int64, copy=False)


def as_candidates(ranked: Sequence[tuple[Array, Array]], k: int) -> Candidates:
    """Candidates [Q, min(k, longest)] of each query's ranked (rows, scores), padded with row -1 and score -inf."""
    width = min(k, max((len(rows) for rows, _ in ranked), default=0))
    out_rows = np.full((len(ranked), width), -1, dtype=np.int64)
    out_scores = np.full((len(ranked), width), _LOWEST, dtype=np.float32)
    for q, (rows, scores) in enumerate(ranked):
        out_rows[q, : len(rows)] = rows[:width]
        out_scores[q, : len(rows)] = scores[:width]
    return Candidates(out_rows, out_scores)


def merge(parts: Sequence[Candidates], k: int) -> Candidates:
    """The k best of several Candidates of the same queries over disjoint rows, such as those of shards."""
    check_depth(k)
    if not parts:
        raise InvalidInput("nothing to merge")
    ranked = []
    for q in range(len(parts[0])):
        rows = np.concatenate([part.of(q)[0] for part in parts])
        scores = np.concatenate([part.of(q)[1] for part in parts])
        by_row = np.argsort(rows, kind="stable")
        positions = by_row[best(scores[by_row], k)]
        ranked.append((rows[positions], scores[positions]))
    return as_candidates(ranked, k)
