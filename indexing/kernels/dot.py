"""Exact inner-product search: a fast product selects rows with a margin, and sums in a fixed order rank them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chamfer.core.types import F32, Array
from chamfer.indexing.kernels import _native, _numba

_UNIT = 2.0**-24  # unit roundoff of float32
_BUFFER_VALUES = 1 << 17  # 512 KiB of float32: still in the second-level cache when the product reads them


def products(values: Array, queries: F32) -> F32:
    """Inner products f32 [Q, n] of queries f32 [Q, D] with finite values f32 or f16 [n, D], summed in any order.

    Used to select rows: the bits depend on the processor and on the batch. Cost Q n D.
    """
    if values.dtype == np.float16:
        native = _native.products_half(values, queries)
        if native is not None:
            return native
    if len(queries) == 1:  # for a single query, BLAS reaches a third of the memory bandwidth
        return dots(values, queries[0])[None]
    scores = np.empty((len(queries), len(values)), dtype=np.float32)
    for start, block in _float_blocks(values):
        scores[:, start : start + len(block)] = queries @ block.T
    return scores


def dots(values: Array, query: F32) -> F32:
    """Inner products f32 [n] of one query f32 [D] with finite values f32 or f16 [n, D].

    A row's bits depend on the processor, but not on the other rows. Cost n D.
    """
    query = np.ascontiguousarray(query)
    scores = np.empty(len(values), dtype=np.float32)
    for start, block in _float_blocks(values):
        scores[start : start + len(block)] = _numba.dots(np.ascontiguousarray(block), query)
    return scores


def margin(dim: int, query_norm: float, largest_norm: float) -> float:
    """How far a float32 inner product, summed in any order, can be from the exact one rounded to float32.

    (D + 1) u |x| |y| with u = 2^-24 to first order (Higham, Accuracy and Stability, sec. 3.1); doubled for safety.
    """
    return 2.0 * (dim + 1) * _UNIT * query_norm * largest_norm


def dot_rows(values: F32, query: F32) -> F32:
    """Inner products f32 [K] of the rows of values f32 [K, D] with query f32 [D].

    Summed in float64 in a fixed order, so that the result of a (query, row) pair depends on nothing else. Cost K D.
    """
    scores: F32 = _numba.dot_rows(np.ascontiguousarray(values), query.astype(np.float64))
    return scores


def _float_blocks(values: Array) -> Iterator[tuple[int, F32]]:
    """(first row, rows f32 [n, D]) of blocks of rows: float32 as one block, float16 through one reused buffer."""
    if values.dtype != np.float16:
        yield 0, np.asarray(values, dtype=np.float32)
        return
    dim = values.shape[1]
    step = max(1, _BUFFER_VALUES // max(dim, 1))
    buffer = np.empty(min(step, len(values)) * dim, dtype=np.float32)
    for start in range(0, len(values), step):
        halves = np.ascontiguousarray(values[start : start + step]).view(np.uint16).reshape(-1)
        _numba.half_to_float(halves, buffer[: len(halves)])
        yield start, buffer[: len(halves)].reshape(-1, dim)
