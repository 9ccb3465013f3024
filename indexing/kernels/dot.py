"""Exact inner-product search: a matrix product selects with a margin, a fixed-order sum decides."""

from __future__ import annotations

import numpy as np

from chamfer.core.types import F32, Array
from chamfer.indexing.kernels import _numba

_UNIT = 2.0**-24  # unit roundoff of float32


def products(values: Array, queries: F32) -> F32:
    """Approximate inner products f32 [Q, n] of queries f32 [Q, D] with values f32 or f16 [n, D]. Cost Q n D."""
    wide = np.asarray(values, dtype=np.float32)
    if len(queries) == 1:  # BLAS reads memory at a third of its rate for a single query
        one: F32 = _numba.dots(np.ascontiguousarray(wide), np.ascontiguousarray(queries[0]))[None]
        return one
    out: F32 = queries @ wide.T
    return out


def margin(dim: int, query_norm: float, largest_norm: float) -> float:
    """How far a float32 inner product, summed in any order, can be from the exact one rounded to float32.

    (D + 1) u |x| |y| with u = 2^-24 to first order (Higham, Accuracy and Stability, sec. 3.1); doubled for safety.
    """
    return 2.0 * (dim + 1) * _UNIT * query_norm * largest_norm


def dot_rows(values: F32, query: F32) -> F32:
    """Inner products f32 [K] of the rows of values f32 [K, D] with query f32 [D].

    Summed in float64 in one fixed order: a (query, row) pair has one result, whatever else is asked. Cost K D.
    """
    out: F32 = _numba.dot_rows(np.ascontiguousarray(values), query.astype(np.float64))
    return out
