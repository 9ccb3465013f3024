"""Fuses several rankings into one: pure functions over Candidates.

A fused list is the union of the channels' lists, best first, ties by smaller row. Sums are computed in f64 in the order
of the channels and rounded once, to f32, before ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.types import F32, I64, Candidates

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChannelShare:
    """What one channel contributed to each fused candidate, all arrays [Q, K].

    ranks i64 (from 1; 0 where the channel did not retrieve the document), scores f32 (raw; NaN where not retrieved),
    values f32 (the normalised score or 1/(k+rank), before weighting), shares f32 (weight * value).
    """

    weight: float
    ranks: I64
    scores: F32
    values: F32
    shares: F32


@dataclass(frozen=True, slots=True)
class Fused:
    """The fused ranking, and each channel's contribution to it."""

    candidates: Candidates
    channels: Mapping[str, ChannelShare]


def interpolate(runs: Mapping[str, Candidates], weights: Mapping[str, float], normalisation: str = "min_max") -> Fused:
    """sum over channels of weight * normalised score.

    A document that a channel did not retrieve takes the lowest normalised score of the channel for this query
    (min_max: 0). Channels that retrieved nothing or have weight 0 do not contribute. See `normalise` for the methods.
    With two channels, weights lambda and 1 - lambda, and min_max, this is the interpolation of Li et al.
    (arXiv 2205.00235) as computed by the code that the paper refers to.
    """
    return _fuse(runs, weights, lambda scores: normalise(scores, normalisation))


def distribution_based(runs: Mapping[str, Candidates], weights: Mapping[str, float]) -> Fused:
    """sum over channels of weight * (s - m + 3 d) / 6 d, where m and d are a list's mean and standard deviation.

    d is the sample standard deviation (ddof 1), as in Qdrant; a single score, or equal scores, give 0.5. Scores within
    three deviations of the mean map to 0..1; others are not clipped. A channel that did not retrieve a document adds 0.
    """

    def by_distribution(scores: F32) -> tuple[F64, float]:
        values: F64 = scores.astype(np.float64)
        deviation = float(values.std(ddof=1)) if len(values) > 1 and values.max() > values.min() else 0.0
        if not deviation > 0:
            return np.full_like(values, 0.5), 0.0
        return (values - values.mean() + 3 * deviation) / (6 * deviation), 0.0

    return _fuse(runs, weights, by_distribution)


def reciprocal_rank(runs: Mapping[str, Candidates], weights: Mapping[str, float], k: float = 60.0) -> Fused:
    """sum over channels of weight / (k + rank), ranks from 1; a channel that did not retrieve a document adds 0.

    Cormack, Clarke and Buettcher, SIGIR 2009, who use k = 60 and weights 1. Engines that count ranks from 0 need a k
    that is larger by 1 for the same result (Qdrant's default of 2 is 1 here). Raises InvalidInput unless k > 0.
    """
    if not k > 0:
        raise InvalidInput(f"k of reciprocal rank fusion is {k}, expected above 0")

    def by_rank(scores: F32) -> tuple[F64, float]:
        return 1.0 / (k + np.arange(1, len(scores) + 1, dtype=np.float64)), 0.0

    return _fuse(runs, weights, by_rank)


def normalise(scores: F32, normalisation: str) -> tuple[F64, float]:
    """(normalised scores f64 [n], the value for documents that are not in the list) of one query's descending scores.

    none     scores unchanged; missing documents take the lowest
    min_max  (s - min) / (max - min); equal scores all give 1; missing: 0 (Li et al., ICTIR 2021, their code)
    centred  (s - (min + max) / 2) / (max - min); equal scores all give 0.5; missing: -0.5, the lowest (Pyserini's
             hybrid search). It is min_max - 0.5, so the order is that of min_max
    z_score  (s - mean) / standard deviation (of the list, ddof 0); equal scores all give 0; missing: the lowest

    Raises InvalidInput for another normalisation.
    """
    values: F64 = scores.astype(np.float64)
    if not len(values):
        return values, 0.0
    lowest = float(values.min())
    if normalisation == "none":
        return values, lowest
    spread = float(values.max()) - lowest
    if normalisation in ("min_max", "centred"):
        shift = 0.0 if normalisation == "min_max" else -0.5
        return ((values - lowest) / spread if spread > 0 else np.ones_like(values)) + shift, shift
    if normalisation == "z_score":
        deviation = float(values.std()) if spread > 0 else 0.0
        values = (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
        return values, float(values.min())
    raise InvalidInput(f"normalisation is {normalisation!r}, expected none, min_max, centred or z_score")


def scored_head_first(current: Candidates, depth: int, scores: F32) -> Candidates:
    """`current` (Q = 1) after a stage scored its first `depth` rows: scores f32 [min(depth, n)]. See
    `scored_rows_first`.
    """
    return scored_rows_first(current, current.of(0)[0][:depth], scores)


def scored_rows_first(current: Candidates, rows: I64, scores: F32) -> Candidates:
    """`current` (Q = 1) after a stage gave scores f32 [n] to rows i64 [n], not all of which need be in it.

    The scored rows come first, by their new score. The others follow in their previous order and with the previous
    differences between their scores, shifted below the lowest new score, so that scores descend over the whole list.
    Raises Internal for scores that are not finite.
    """
    if len(scores) != len(rows) or not np.isfinite(scores).all():
        raise Internal(f"a stage returned {len(scores)} scores for {len(rows)} rows, or some that are not finite")
    current_rows, current_scores = current.of(0)
    unscored = ~np.isin(current_rows, rows)
    tail, tail_scores = current_rows[unscored], current_scores[unscored]
    if len(tail) and len(rows):
        below = np.nextafter(scores.min(), np.float32(-np.inf))
        tail_scores = (below - (tail_scores[0] - tail_scores)).astype(np.float32)
    rows, scores = np.concatenate([rows, tail]), np.concatenate([scores, tail_scores])
    order = ranking(rows, scores)
    return Candidates(rows[order][None, :], scores[order][None, :])


def blend(share: float, scores: F32, earlier: F32) -> F32:
    """share * scores + (1 - share) * earlier, both min-max-normalised over the list; f32 [n]."""
    new, _ = normalise(scores, "min_max")
    old, _ = normalise(earlier, "min_max")
    return (share * new + (1.0 - share) * old).astype(np.float32)


def ranking(rows: I64, scores: F32) -> I64:
    """The order i64 [n] by descending score, ties by smaller row."""
    return np.lexsort((rows, -scores)).astype(np.int64, copy=False)


def _fuse(
    runs: Mapping[str, Candidates],
    weights: Mapping[str, float],
    value: Callable[[F32], tuple[F64, float]],
) -> Fused:
    active = {name: run for name, run in runs.items() if _weight(weights, name) > 0}
    sizes = {len(run) for run in active.values()}
    if len(sizes) != 1:
        raise InvalidInput(f"runs over {sorted(sizes)} queries cannot be fused; expected runs over the same queries")
    fused = [_fuse_query(active, weights, value, query) for query in range(sizes.pop())]
    depth = max((len(rows) for rows, _, _ in fused), default=0)
    candidates = Candidates(
        _pad([rows for rows, _, _ in fused], depth, -1, np.int64),
        _pad([scores for _, scores, _ in fused], depth, -np.inf, np.float32),
    )
    return Fused(candidates, {name: _share(weights[name], name, fused, depth) for name in active})


def _weight(weights: Mapping[str, float], name: str) -> float:
    weight = weights.get(name)
    if weight is None or not 0 <= weight < np.inf:
        raise InvalidInput(f"channel {name!r} has the fusion weight {weight}, expected a finite number of at least 0")
    return weight


_Column = tuple[I64, F32, F32]  # ranks, raw scores, values of one channel for one query's fused rows
_Row = tuple[I64, F32, dict[str, _Column]]


def _fuse_query(
    runs: Mapping[str, Candidates],
    weights: Mapping[str, float],
    value: Callable[[F32], tuple[F64, float]],
    query: int,
) -> _Row:
    ranked = {name: run.of(query) for name, run in runs.items()}
    rows = np.unique(np.concatenate([channel_rows for channel_rows, _ in ranked.values()]))
    total = np.zeros(len(rows), dtype=np.float64)
    columns: dict[str, _Column] = {}
    for name, (channel_rows, scores) in ranked.items():
        values, missing = value(scores)
        positions = np.searchsorted(rows, channel_rows)
        column = np.full(len(rows), missing)
        column[positions] = values
        total += weights[name] * column
        ranks = np.zeros(len(rows), dtype=np.int64)
        ranks[positions] = np.arange(1, len(channel_rows) + 1)
        raw = np.full(len(rows), np.nan, dtype=np.float32)
        raw[positions] = scores
        columns[name] = (ranks, raw, column.astype(np.float32))
    fused = total.astype(np.float32)
    order = ranking(rows, fused)
    return rows[order], fused[order], {name: (a[order], b[order], c[order]) for name, (a, b, c) in columns.items()}


def _share(weight: float, name: str, fused: Sequence[_Row], depth: int) -> ChannelShare:
    columns = [columns[name] for _, _, columns in fused]
    values = _pad([c[2] for c in columns], depth, np.nan, np.float32)
    return ChannelShare(
        weight=weight,
        ranks=_pad([c[0] for c in columns], depth, 0, np.int64),
        scores=_pad([c[1] for c in columns], depth, np.nan, np.float32),
        values=values,
        shares=(weight * values).astype(np.float32),
    )


def _pad(columns: Sequence[NDArray[Any]], depth: int, fill: float, dtype: type[np.generic]) -> NDArray[Any]:
    padded = np.full((len(columns), depth), fill, dtype=dtype)
    for row, column in zip(padded, columns, strict=True):
        row[: len(column)] = column
    return padded
