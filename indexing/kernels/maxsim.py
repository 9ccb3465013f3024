"""MaxSim (Chamfer similarity) of one query with rows of ragged token vectors.

score(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>
(Khattab and Zaharia, SIGIR 2020, eq. 3). A document without tokens scores 0, a query without tokens scores all 0.
"""

from __future__ import annotations

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Array
from chamfer.indexing.kernels import _native, _numba

_BF16_ERROR = 2.0**-9 * (2 / 3) ** 0.5  # standard deviation of the rounding of both factors of a product


def maxsim_fast(query: F32, values: Array, offsets: I64, rows: I64) -> F32:
    """As `maxsim_rows`, through bf16 products if the processor has them and values are f16, within `fast_error` of it.

    Each pair has a fixed order of operations, hence the same bits in any batch on one machine.
    """
    _check(query, values)
    if len(query) and len(rows) and values.dtype == np.float16:
        scores = _native.maxsim_half(query, values, np.ascontiguousarray(offsets), np.ascontiguousarray(rows))
        if scores is not None:
            return scores
    return maxsim_rows(query, values, offsets, rows)


def fast_error(query: F32, largest_norm: float) -> float:
    """How far `maxsim_fast` may be from `maxsim_rows` if no token vector of a document is longer than largest_norm.

    Eight standard deviations of the sum of one rounding error per query token, as if each vector had a single non-zero
    coordinate (the worst case; the error for text embeddings, which are spread out, is about ten times smaller).
    """
    return float(8 * _BF16_ERROR * np.sqrt(np.sum(np.square(query, dtype=np.float64))) * largest_norm)


def maxsim_rows(query: F32, values: Array, offsets: I64, rows: I64) -> F32:
    """Scores f32 [K] of query f32 [Tq, D] for rows i64 [K] of values f32 or f16 [T, D], offsets i64 [N+1].

    One matrix product per document, so that a pair's bits depend on the pair alone. Cost Tq D per token read.
    """
    _check(query, values)
    if len(query) == 0 or len(rows) == 0:
        return np.zeros(len(rows), dtype=np.float32)
    columns = np.ascontiguousarray(query.T, dtype=np.float32)
    if values.dtype == np.float16:
        scores: F32 = _numba.maxsim_half(columns, values.view(np.uint16), offsets, rows)
        return scores
    scores = _numba.maxsim_float(columns, np.asarray(values, dtype=np.float32), offsets, rows)
    return scores


def maxsim_plain(query: F32, values: Array, offsets: I64, rows: I64) -> F32:
    """As `maxsim_rows`, from the definition and without compilation: the reference for readers and tests."""
    _check(query, values)
    scores = np.zeros(len(rows), dtype=np.float32)
    for i, row in enumerate(rows):
        document = np.asarray(values[offsets[row] : offsets[row + 1]], dtype=np.float32)
        if len(document) and len(query):
            scores[i] = (query @ document.T).max(axis=1).sum(dtype=np.float64)
    return scores


def _check(query: F32, values: Array) -> None:
    if query.ndim != 2 or query.shape[1] != values.shape[1]:
        raise InvalidInput(f"query tokens have shape {query.shape}, expected [Tq, {values.shape[1]}]")
