"""CUR decomposition of a cross-encoder's score matrix: M ~ C pinv(W) R, and the query's part of it.

M[q, i] is the score of query q with item i. R holds the rows of M at k_q anchor queries, here item by item as `columns`
[n, k_q]: a text's profile under those queries. C holds a query's scores with a few items, W what R says of those items.
Row q of the product is sum over scored items a of c_a times (pinv(W) R)[a, .], which is the inner product of every
column with the weights w that reproduce the scores already known: W' w = c in the least-squares sense, of least norm.
So one fit of k_q weights and one scan answer a query (ANNCUR, arXiv 2210.12579, eq. 3-5; ADACUR, arXiv 2305.02996,
fits again after every round; AXN, arXiv 2405.03651, eq. 2, fits over reduced columns around a first-stage guess).
All in float64: float32 with a generous cut-off loses everything on matrices of exactly low rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Array

F64 = NDArray[np.float64]
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class QueryFit:
    """score(i) ~ bias + weights . columns[i] + slope * guess[i]; weights f64 [k_q]. slope is 0 without a guess."""

    weights: F64
    bias: float
    slope: float = 0.0

    def estimate(self, columns: Array, guess: F64 | None = None) -> F32:
        """f32 [n] of columns [n, k_q]. Cost n k_q."""
        out = columns @ self.weights + self.bias
        if guess is not None:
            out = out + self.slope * guess
        return out.astype(np.float32)


def truncated_pseudo_inverse(matrix: F64, cutoff: float) -> F64:
    """pinv f64 [n, m] of f64 [m, n] without singular values below `cutoff` times the largest.

    The cut is never below the rounding error, max(m, n) eps. Without a real cut the error peaks where m = n
    ("double descent"): small singular values of a square intersection are noise, and their inverses are large.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > _threshold(values, cutoff, matrix.shape)
    return np.asarray((right[kept].T / values[kept]) @ left[:, kept].T)


def cur_scores(columns: Array, items: I64, scores: F64, cutoff: float) -> F64:
    """Plain CUR, c pinv(W) R: estimates f64 [n] of a query from its scores f64 [k_i] with items i64 [k_i].

    Exact where rank(M) = rank(W). Cost of the inverse k_i k_q min(k_i, k_q).
    """
    table = np.asarray(columns, dtype=np.float64)
    return np.asarray(table @ (scores @ truncated_pseudo_inverse(table[items].T, cutoff)))


def fit_query(
    columns: Array,
    scores: Array,
    *,
    cutoff: float,
    ridge: float = 0.0,
    guess: F64 | None = None,
) -> QueryFit:
    """The least-norm fit to the scores f64 [n] that a query has with n items of columns [n, k_q].

    bias    is free: a query whose scores are all higher by a constant is met exactly (a constant anchor row)
    cutoff  leaves out directions in which the centred columns spread less than this share of the widest
    ridge   shrinks the weights: this share of the largest squared singular value is added to each
    guess   f64 [n]: a first-stage score of each item, whose slope is fitted first; the columns explain what it leaves

    Raises InvalidInput for shapes that do not fit or scores that are not finite.
    """
    table = np.asarray(columns, dtype=np.float64)
    known = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or known.shape != (len(table),) or not len(table):
        raise InvalidInput(f"{known.shape} scores for columns {table.shape}, expected [n] for [n, k_q] with n >= 1")
    if not np.isfinite(known).all():
        raise InvalidInput(f"score {int(np.argmin(np.isfinite(known)))} of {len(known)} is not finite")
    middle, level = table.mean(axis=0), float(known.mean())
    slope, offset = (0.0, 0.0) if guess is None else _slope(guess, known)
    rest = known - level - slope * ((guess if guess is not None else 0.0) - offset)
    left, values, right = np.linalg.svd(table - middle, full_matrices=False)
    kept = values > _threshold(values, cutoff, table.shape)
    if not kept.any():
        return QueryFit(np.zeros(table.shape[1]), level - slope * offset, slope)
    values, left, right = values[kept], left[:, kept], right[kept]
    weights = right.T @ ((values / (values**2 + ridge * values[0] ** 2)) * (left.T @ rest))
    return QueryFit(weights, float(level - slope * offset - middle @ weights), slope)


def pick_diverse(columns: Array, n: int) -> I64:
    """n places i64 whose centred columns span the largest volume, greedily (pivoted Gram-Schmidt). Cost n N k_q.

    Fewer where the columns span less; ties by smaller place.
    """
    rest = np.asarray(columns, dtype=np.float64)
    rest = rest - rest.mean(axis=0)
    chosen: list[int] = []
    smallest = (max(rest.shape) * np.finfo(np.float64).eps) ** 2 * float((rest**2).sum(axis=1).max(initial=0.0))
    for _ in range(min(n, len(rest))):
        norms = (rest**2).sum(axis=1)
        place = int(np.argmax(norms))
        if norms[place] <= smallest:
            break
        chosen.append(place)
        direction = rest[place] / np.sqrt(norms[place])
        rest = rest - np.outer(rest @ direction, direction)
    return np.array(chosen, dtype=np.int64)


def shuffled(keys: Array, seed: int) -> I64:
    """Places i64 [n] in an order drawn from `seed` that depends on each key u64 [n] alone, not on where it stands."""
    mixed = keys.astype(np.uint64) ^ np.uint64(seed * _MIX % 2**64)
    for shift in (30, 27, 31):  # as the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), with one multiplier
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(_MIX)
    return np.lexsort((keys, mixed)).astype(np.int64, copy=False)


def _threshold(values: F64, cutoff: float, shape: tuple[int, ...]) -> float:
    largest = float(values[0]) if len(values) else 0.0
    return max(cutoff, max(shape) * float(np.finfo(np.float64).eps)) * largest


def _slope(guess: F64, known: F64) -> tuple[float, float]:
    """(slope >= 0 of the regression of the scores on the guess, the guess's mean)."""
    offset = float(guess.mean())
    centred = guess - offset
    spread = float(centred @ centred)
    if spread <= 0.0:
        return 0.0, offset
    return max(float(centred @ known) / spread, 0.0), offset
