"""CUR decomposition of a cross-encoder's score matrix, M ~ C pinv(W) R, one query at a time.

M[q, i] is the score of query q with item i. R holds the rows of M for k_q anchor queries; here it is stored by item, as
`columns` [n, k_q]: the scores of each item with the anchor queries. C holds the scores of a query with a few items, and
W the columns of R for those items.

The estimates for query q, c pinv(W) R, are the inner products of all columns with one weight vector w: the least-norm
least-squares solution of W' w = c, that is, the weights that reproduce the scores computed so far. A query therefore
costs one fit of k_q weights and one scan (ANNCUR, arXiv 2210.12579, eq. 3-5). ADACUR (arXiv 2305.02996) fits again
after every round; AXN (arXiv 2405.03651, eq. 2) fits reduced columns around a first-stage guess.

Everything is computed in float64: float32 with a generous cut-off loses all accuracy on matrices of exactly low rank.
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
        """Estimated scores f32 [n] of items with columns [n, k_q]. Cost n k_q."""
        estimates = columns @ self.weights + self.bias
        if guess is not None:
            estimates = estimates + self.slope * guess
        return estimates.astype(np.float32)


def truncated_pseudo_inverse(matrix: F64, cutoff: float) -> F64:
    """The pseudo-inverse f64 [n, m] of matrix f64 [m, n], without singular values below `cutoff` times the largest.

    The cut-off is never below the rounding error, max(m, n) eps. Without a real cut-off the error peaks where m = n
    ("double descent"): small singular values of a square intersection are noise, and their inverses are large.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > _threshold(values, cutoff, matrix.shape)
    return np.asarray((right[kept].T / values[kept]) @ left[:, kept].T)


def cur_scores(columns: Array, items: I64, scores: F64, cutoff: float) -> F64:
    """Plain CUR, c pinv(W) R: estimates f64 [n] of a query from its scores f64 [k_i] with items i64 [k_i].

    Exact if rank(M) = rank(W). The inverse costs k_i k_q min(k_i, k_q).
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
    """The least-norm fit to a query's scores f64 [n] with n items, whose columns are [n, k_q].

    cutoff  drops directions in which the centred columns spread less than this share of the widest direction
    ridge   shrinks the weights: this share of the largest squared singular value is added to each
    guess   f64 [n]: a first-stage score of each item. Its slope is fitted first, and the columns to the residuals

    The bias is free, so that adding a constant to all scores of a query changes only the bias (as a constant anchor row
    would do).

    Raises InvalidInput for shapes that do not match or scores that are not finite.
    """
    table = np.asarray(columns, dtype=np.float64)
    targets = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or targets.shape != (len(table),) or not len(table):
        raise InvalidInput(f"{targets.shape} scores for columns {table.shape}, expected [n] for [n, k_q] with n >= 1")
    if not np.isfinite(targets).all():
        raise InvalidInput(f"score {int(np.argmin(np.isfinite(targets)))} of {len(targets)} is not finite")
    mean_column, mean_score = table.mean(axis=0), float(targets.mean())
    slope, offset = (0.0, 0.0) if guess is None else _slope(guess, targets)
    residuals = targets - mean_score - slope * ((guess if guess is not None else 0.0) - offset)
    left, values, right = np.linalg.svd(table - mean_column, full_matrices=False)
    kept = values > _threshold(values, cutoff, table.shape)
    if not kept.any():
        return QueryFit(np.zeros(table.shape[1]), mean_score - slope * offset, slope)
    values, left, right = values[kept], left[:, kept], right[kept]
    weights = right.T @ ((values / (values**2 + ridge * values[0] ** 2)) * (left.T @ residuals))
    return QueryFit(weights, float(mean_score - slope * offset - mean_column @ weights), slope)


def pick_diverse(columns: Array, n: int) -> I64:
    """Positions i64 [n] of the columns that, centred, span the largest volume; greedy, by pivoted Gram-Schmidt.

    Fewer than n if the columns span fewer dimensions. Ties go to the smaller position. Cost n N k_q.
    """
    residuals = np.asarray(columns, dtype=np.float64)
    residuals = residuals - residuals.mean(axis=0)
    chosen: list[int] = []
    smallest = (max(residuals.shape) * np.finfo(np.float64).eps) ** 2 * float(
        (residuals**2).sum(axis=1).max(initial=0.0)
    )
    for _ in range(min(n, len(residuals))):
        norms = (residuals**2).sum(axis=1)
        position = int(np.argmax(norms))
        if norms[position] <= smallest:
            break
        chosen.append(position)
        direction = residuals[position] / np.sqrt(norms[position])
        residuals = residuals - np.outer(residuals @ direction, direction)
    return np.array(chosen, dtype=np.int64)


def shuffled(keys: Array, seed: int) -> I64:
    """Positions i64 [n] of keys u64 [n], in a random order given by `seed` and the keys, whatever their positions."""
    mixed = keys.astype(np.uint64) ^ np.uint64(seed * _MIX % 2**64)
    for shift in (30, 27, 31):  # as the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), with one multiplier
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(_MIX)
    return np.lexsort((keys, mixed)).astype(np.int64, copy=False)


def _threshold(values: F64, cutoff: float, shape: tuple[int, ...]) -> float:
    largest = float(values[0]) if len(values) else 0.0
    return max(cutoff, max(shape) * float(np.finfo(np.float64).eps)) * largest


def _slope(guess: F64, scores: F64) -> tuple[float, float]:
    """(slope >= 0 of the regression of the scores on the guess, the guess's mean)."""
    offset = float(guess.mean())
    centred = guess - offset
    spread = float(centred @ centred)
    if spread <= 0.0:
        return 0.0, offset
    return max(float(centred @ scores) / spread, 0.0), offset
