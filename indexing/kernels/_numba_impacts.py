"""Compiled twin of sparse.c, imported by chamfer.indexing.kernels.impacts alone: the same results, every list read."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.compilation import compiled

_SLOP = np.float32(2e-5)  # relative error of a sum of float32 products in any order, generously
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)


@compiled(error_model="numpy")
def search(by_term: Any, by_row: Any, mode: Any, query: Any, asked: Any, k: int, wanted: Any) -> Any:
    """(rows i64 [n], scores f32 [n]) of one query, rows ascending: those that could be among the k best.

    by_term (offsets, documents, codes), by_row (row_offsets, row_terms, row_values, norms), mode (saturating,
    row_values are float32), query f32 [V] (zero before and after), asked (terms, weights), wanted (allowed, empty for
    all; floor): as in chamfer.indexing.kernels.impacts.
    """
    saturating, float_values = mode
    norms = by_row[3]
    terms, weights = asked
    total = _ZERO
    for i in range(len(terms)):
        total += weights[i]
    found = sums(by_term, norms, saturating, asked)
    rows = _select(found, norms, _HALF * total if float_values else _ZERO, k, wanted)
    out = score_rows(by_row, mode, query, asked, rows)
    keep = out > 0
    return rows[keep], out[keep]


@compiled(error_model="numpy")
def sums(by_term: Any, norms: Any, saturating: bool, asked: Any) -> Any:
    """f32 [N]: what the asked lists give each row, in steps of its codes (as sparse.c adds up in a pruned search)."""
    offsets, documents, codes = by_term
    terms, weights = asked
    out = np.zeros(len(norms), np.float32)
    for i in range(len(terms)):
        for p in range(offsets[terms[i]], offsets[terms[i] + 1]):
            d = documents[p]
            code = np.float32(codes[p])
            out[d] += weights[i] * (code / (code + norms[d]) if saturating else code)
    if not saturating:
        out *= norms
    return out


@compiled(error_model="numpy")
def score_rows(by_row: Any, mode: Any, query: Any, asked: Any, rows: Any) -> Any:
    """f32 [n]: the scores of rows from their own terms; arguments as in `search`."""
    row_offsets, row_terms, row_values, norms = by_row
    terms, weights = asked
    for i in range(len(terms)):
        query[terms[i]] = weights[i]
    out = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        start, stop = row_offsets[rows[i]], row_offsets[rows[i] + 1]
        out[i] = _score(row_terms[start:stop], row_values[start:stop], norms[rows[i]], mode, query)
    for i in range(len(terms)):
        query[terms[i]] = _ZERO
    return out


@compiled(error_model="numpy")
def _select(found: Any, norms: Any, half_steps: Any, k: int, wanted: Any) -> Any:
    """Rows whose score could be among the k best by their sums, which are off by half_steps of their codes at most."""
    allowed, floor = wanted
    lowers = np.full(len(norms), -np.inf, np.float32)
    uppers = np.full(len(norms), -np.inf, np.float32)
    for d in range(len(norms)):
        if found[d] > 0 and (len(allowed) == 0 or allowed[d]):
            error = _SLOP * found[d] + half_steps * norms[d]
            lowers[d] = found[d] - error
            uppers[d] = found[d] + error
    threshold = floor
    if k < len(norms):
        threshold = max(floor, np.partition(lowers, len(norms) - k)[len(norms) - k])
    return np.flatnonzero((uppers >= threshold) & (uppers > 0))


@compiled(error_model="numpy")
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
