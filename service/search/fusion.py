"""Several rankings into one: pure functions over Candidates, each with one stated meaning.

All fused lists hold the union of what the channels found, best first, ties by smaller row. Sums are taken in f64
in the order of the channels and rounded once, to f32, before ranking.
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
    """What one channel gave to each fused candidate, all arrays [Q, K].

    ranks i64 (from 1, 0 where the channel did not find the document), scores f32 (raw, NaN where not found),
    values f32 (what was weighted: the normalised score or 1/(k+rank)), shares f32 (weight * value).
    """

    weight: float
    ranks: I64
    scores: F32
    values: F32
    shares: F32


@dataclass(frozen=True, slots=True)
class Fused:
    """The fused ranking, and the arithmetic behind it by channel."""

    candidates: Candidates
    channels: Mapping[str, ChannelShare]


def interpolate(runs: Mapping[str, Candidates], weights: Mapping[str, float], normalisation: str = "min_max") -> Fused:
    """sum over channels of weight * normalised score.

    A document that a channel did not find gets the lowest normalised score that the channel gave to this query
    (min_max: 0). A channel that found nothing, or has weight 0, takes no part. See `normalise` for the rest.
    With two channels, weights lambda and 1 - lambda and min_max this is the interpolation of Li et al.
    (arXiv 2205.00235) as the code that it refers to computes it.
    """
    return _fuse(runs, weights, lambda scores: normalise(scores, normalisation))


def distribution_based(runs: Mapping[str, Candidates], weights: Mapping[str, float]) -> Fused:
    """sum over channels of weight * (s - m + 3 d) / 6 d, where m and d are a list's mean and standard deviation.

    d is the sample's (ddof 1), as in Qdrant; one score, or equal ones, give 0.5. Scores within three deviations come
    to lie in 0..1; others are not clipped. A channel that did not find a document adds 0.
    """

    def by_distribution(scores: F32) -> tuple[F64, float]:
        values: F64 = scores.astype(np.float64)
        deviation = float(values.std(ddof=1)) if len(values) > 1 and values.max() > values.min() else 0.0
        if not deviation > 0:
            return np.full_like(values, 0.5), 0.0
        return (values - values.mean() + 3 * deviation) / (6 * deviation), 0.0

    return _fuse(runs, weights, by_distribution)


def reciprocal_rank(runs: Mapping[str, Candidates], weights: Mapping[str, float], k: float = 60.0) -> Fused:
    """sum over channels of weight / (k + rank), ranks from 1; a channel that did not find a document adds 0.

    Cormack, Clarke and Buettcher, SIGIR 2009, there with k = 60 and weights 1. Engines that count ranks from 0 call
    the same thing by a k that is 1 more (Qdrant's default of 2 is 1 here).
    """
    if not k > 0:
        raise InvalidInput(f"k of reciprocal rank fusion is {k}, expected above 0")

    def by_rank(scores: F32) -> tuple[F64, float]:
        return 1.0 / (k + np.arange(1, len(scores) + 1, dtype=np.float64)), 0.0

    return _fuse(runs, weights, by_rank)


def normalise(scores: F32, normalisation: str) -> tuple[F64, float]:
    """(normalised scores f64 [n], the value for documents that are not in the list) of one query's falling scores.

    none     scores as they are; missing: the lowest
    min_max  (s - min) / (max - min); equal scores all give 1; missing: 0 (Li et al., ICTIR 2021, their code)
    centred  (s - (min + max) / 2) / (max - min); equal scores all give 0.5; missing: -0.5, the lowest (Pyserini's
             hybrid search). min_max less a half, so the order is that of min_max
    z_score  (s - mean) / standard deviation (of the list, ddof 0); equal scores all give 0; missing: the lowest
    """
    values: F64 = scores.astype(np.float64)
    if not len(values):
        return values, 0.0
    lowest = float(values.min())
    if normalisation == "none":
        return values, lowest
    spread = float(values.max()) - lowest
    if normalisation in ("min_max", "centred"):
        lift = 0.0 if normalisation == "min_max" else -0.5
        return ((values - lowest) / spread if spread > 0 else np.ones_like(values)) + lift, lift
    if normalisation == "z_score":
        deviation = float(values.std()) if spread > 0 else 0.0
        values = (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
        return values, float(values.min())
    raise InvalidInput(f"normalisation {normalisation!r}: expected none, min_max, centred or z_score")


def judged_first(current: Candidates, depth: int, scores: F32) -> Candidates:
    """`current` (Q = 1) after a stage scored its first `depth` rows: scores f32 [min(depth, n)]; see `rows_first`."""
    return rows_first(current, current.of(0)[0][:depth], scores)


def rows_first(current: Candidates, rows: I64, scores: F32) -> Candidates:
    """`current` (Q = 1) after a stage gave scores f32 [n] to rows i64 [n], which need not all have been in it.

    Judged rows come first by their new score. The others follow in their old order and with their old gaps, moved
    under the lowest judged score, so that scores still fall from the first to the last. Raises Internal for scores
    that are not finite.
    """
    if len(scores) != len(rows) or not np.isfinite(scores).all():
        raise Internal(f"a stage gave {len(scores)} scores for {len(rows)} rows, or some that are not finite")
    others, old = current.of(0)
    behind = ~np.isin(others, rows)
    tail, tail_scores = others[behind], old[behind]
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
    """The order i64 [n] in which scores fall and ties stand by smaller row."""
    return np.lexsort((rows, -scores)).astype(np.int64, copy=False)


def _fuse(
    runs: Mapping[str, Candidates],
    weights: Mapping[str, float],
    value: Callable[[F32], tuple[F64, float]],
) -> Fused:
    active = {name: run for name, run in runs.items() if _weight(weights, name) > 0}
    sizes = {len(run) for run in active.values()}
    if len(sizes) != 1:
        raise InvalidInput(f"runs over {sorted(sizes)} queries cannot be fused; expected one or more of one length")
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
        raise InvalidInput(f"channel {name!r} has the fusion weight {weight}, expected a number from 0 up")
    return weight


_Column = tuple[I64, F32, F32]  # ranks, raw scores, values of one channel for one query's fused rows
_Row = tuple[I64, F32, dict[str, _Column]]


def _fuse_query(
    runs: Mapping[str, Candidates],
    weights: Mapping[str, float],
    value: Callable[[F32], tuple[F64, float]],
    query: int,
) -> _Row:
    found = {name: run.of(query) for name, run in runs.items()}
    rows = np.unique(np.concatenate([channel_rows for channel_rows, _ in found.values()]))
    total = np.zeros(len(rows), dtype=np.float64)
    columns: dict[str, _Column] = {}
    for name, (channel_rows, scores) in found.items():
        values, missing = value(scores)
        places = np.searchsorted(rows, channel_rows)
        column = np.full(len(rows), missing)
        column[places] = values
        total += weights[name] * column
        ranks = np.zeros(len(rows), dtype=np.int64)
        ranks[places] = np.arange(1, len(channel_rows) + 1)
        raw = np.full(len(rows), np.nan, dtype=np.float32)
        raw[places] = scores
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
