"""Compiled twin of sparse.c, imported by indexing.kernels.impacts alone: the same results, every list read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_SLOP = np.float32(2e-5)  # relative error of a sum of float32 products in any order, generously
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)


@njit(nogil=True, cache=True, error_model="numpy")
def search(by_term: Any, by_row: Any, mode: Any, room: Any, asked: Any, k: int, wanted: Any) -> Any:
    """(rows i64 [n], scores f32 [n]) of one query, rows ascending: those that could be among the k best.

    by_term (offsets, documents, codes), by_row (row_offsets, row_terms, row_values, norms), mode (saturating,
    row_values are float32), room (scores, query), asked (terms, weights), wanted (allowed, empty for all; floor): as in
    indexing.kernels.impacts.
    """
    offsets, documents, codes = by_term
    row_offsets, row_terms, row_values, norms = by_row
    saturating, float_values = mode
    scores, query = room
    terms, weights = asked
    total = _ZERO
    for i in range(len(terms)):
        query[terms[i]] = weights[i]
        total += weights[i]
        for p in range(offsets[terms[i]], offsets[terms[i] + 1]):
            d = documents[p]
            code = np.float32(codes[p])
            scores[d] += weights[i] * (code / (code + norms[d]) if saturating else code)
    rows = _select(scores, norms, saturating, _HALF * total if float_values else _ZERO, k, wanted)
    out = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        start, stop = row_offsets[rows[i]], row_offsets[rows[i] + 1]
        out[i] = _score(row_terms[start:stop], row_values[start:stop], norms[rows[i]], mode, query)
    for i in range(len(terms)):
        query[terms[i]] = _ZERO
    keep = out > 0
    return rows[keep], out[keep]


@njit(nogil=True, cache=True, error_model="numpy")
def _select(scores: Any, norms: Any, saturating: bool, half_steps: Any, k: int, wanted: Any) -> Any:
    """Rows whose score could be among the k best; the sums are set to zero."""
    allowed, floor = wanted
    lowers = np.full(len(norms), -np.inf, np.float32)
    uppers = np.full(len(norms), -np.inf, np.float32)
    for d in range(len(norms)):
        if scores[d] > 0 and (len(allowed) == 0 or allowed[d]):
            scale = np.float32(1.0) if saturating else norms[d]
            error = _SLOP * scores[d] * scale + half_steps * scale
            lowers[d] = scores[d] * scale - error
            uppers[d] = scores[d] * scale + error
        scores[d] = _ZERO
    threshold = floor
    if k < len(norms):
        threshold = max(floor, np.partition(lowers, len(norms) - k)[len(norms) - k])
    return np.flatnonzero((uppers >= threshold) & (uppers > 0))


@njit(nogil=True, cache=True, error_model="numpy")
def _score(terms: Any, values: Any, norm: Any, mode: Any, query: Any) -> Any:
    """A row's score in sixteen lanes that are added in a fixed order."""
    saturating, float_values = mode
    lanes = np.zeros(16, np.float32)
    for i in range(len(terms)):
        value = np.float32(values[i])
        if saturating:
            value = value / (value + norm)
        lanes[i % 16] += query[terms[i]] * value
    for width in (8, 4, 2, 1):
        for j in range(width):
            lanes[j] += lanes[j + width]
    return lanes[0] if saturating or float_values else lanes[0] * norm
