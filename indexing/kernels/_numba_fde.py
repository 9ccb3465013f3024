"""Compiled twins of indexing.kernels.fde. One matrix product a document, so that its bits depend on it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def encode_documents(values: Any, offsets: Any, planes: Any, projections: Any, fill: bool, out: Any) -> None:
    """Document encodings into out f32 [N, R, B, p]."""
    n_reps, dim, _ = projections.shape
    n_cells = out.shape[2]
    k = planes.shape[1] // n_reps
    rows = np.empty((n_cells, dim), np.float32)
    counts = np.empty(n_cells, np.int64)
    first = np.empty(n_cells, np.int64)
    cells = np.empty((n_reps, _longest(offsets)), np.int64)
    for n in range(len(offsets) - 1):
        tokens = values[offsets[n] : offsets[n + 1]]
        if len(tokens) == 0:
            out[n] = 0.0
            continue
        _cells_of(tokens, planes, k, cells)
        for r in range(n_reps):
            _add_up(tokens, cells[r], rows, counts, first)
            _divide(rows, counts)
            if fill:
                nearest_tokens(counts, first, k)
            for cell in range(n_cells):
                if counts[cell] == 0:
                    if fill:
                        rows[cell] = tokens[first[cell]]
                    else:
                        rows[cell] = 0.0
            np.dot(rows, projections[r], out[n, r])


@njit(nogil=True, cache=True)
def encode_queries(values: Any, offsets: Any, planes: Any, projections: Any, out: Any) -> None:
    """Query encodings into out f32 [N, R, B, p], which holds zeros."""
    n_reps, dim, _ = projections.shape
    k = planes.shape[1] // n_reps
    longest = _longest(offsets)
    cells = np.empty((n_reps, longest), np.int64)
    rows = np.empty((longest, dim), np.float32)
    place = np.empty(out.shape[2], np.int64)
    used = np.empty(longest, np.int64)
    for n in range(len(offsets) - 1):
        tokens = values[offsets[n] : offsets[n + 1]]
        if len(tokens) == 0:
            continue
        _cells_of(tokens, planes, k, cells)
        for r in range(n_reps):
            n_used = _add_up_used(tokens, cells[r], rows, place, used)
            projected = np.dot(rows[:n_used], projections[r])
            for u in range(n_used):
                out[n, r, used[u]] = projected[u]


@njit(nogil=True, cache=True)
def _longest(offsets: Any) -> Any:
    out = 0
    for n in range(len(offsets) - 1):
        out = max(out, offsets[n + 1] - offsets[n])
    return out


@njit(nogil=True, cache=True)
def _cells_of(tokens: Any, planes: Any, k: int, cells: Any) -> None:
    """The cell of every token in every repetition, into cells i64 [R, >= L]."""
    if k == 0:
        cells[:] = 0
        return
    sides = np.dot(tokens, planes)
    for r in range(len(cells)):
        for t in range(len(tokens)):
            cell = np.int64(0)
            for bit in range(k):
                cell |= np.int64(sides[t, r * k + bit] > 0.0) << bit
            cells[r, t] = cell


@njit(nogil=True, cache=True)
def _add_up(tokens: Any, cells: Any, rows: Any, counts: Any, first: Any) -> None:
    """Sums f32 [B, d] and numbers i64 [B] of the tokens of every cell, and its lowest token."""
    counts[:] = 0
    for t in range(len(tokens)):
        cell = cells[t]
        if counts[cell] == 0:
            first[cell] = t
            for d in range(tokens.shape[1]):
                rows[cell, d] = tokens[t, d]
        else:
            for d in range(tokens.shape[1]):
                rows[cell, d] += tokens[t, d]
        counts[cell] += 1


@njit(nogil=True, cache=True)
def _add_up_used(tokens: Any, cells: Any, rows: Any, place: Any, used: Any) -> Any:
    """Sums of the occupied cells alone, laid end to end in rows; `used` names them. Returns their number."""
    place[:] = -1
    n_used = 0
    for t in range(len(tokens)):
        own = place[cells[t]]
        if own < 0:
            place[cells[t]] = n_used
            used[n_used] = cells[t]
            rows[n_used] = tokens[t]
            n_used += 1
        else:
            for d in range(tokens.shape[1]):
                rows[own, d] += tokens[t, d]
    return n_used


@njit(nogil=True, cache=True)
def _divide(rows: Any, counts: Any) -> None:
    """Sums to means."""
    for cell in range(len(counts)):
        if counts[cell] > 1:
            scale = np.float32(1.0) / np.float32(counts[cell])
            for d in range(rows.shape[1]):
                rows[cell, d] *= scale


@njit(nogil=True, cache=True)
def nearest_tokens(counts: Any, first: Any, k: int) -> None:
    """For every empty cell the lowest token among those in the nearest occupied cells, into first i64 [2^k].

    Breadth first over the k-cube: a cell at distance h from the tokens has its nearest ones through its neighbours at
    distance h - 1. `first` is the lowest token of each occupied cell (counts > 0); there must be one.
    """
    level = np.where(counts > 0, 0, k + 1)
    missing = np.count_nonzero(level)
    distance = 1
    while missing > 0:
        for cell in range(len(counts)):
            if level[cell] <= k:
                continue
            best = np.int64(-1)
            for bit in range(k):
                other = cell ^ (1 << bit)
                if level[other] == distance - 1 and (best < 0 or first[other] < best):
                    best = first[other]
            if best >= 0:
                level[cell] = distance
                first[cell] = best
                missing -= 1
        distance += 1


@njit(nogil=True, cache=True)
def sketch_rows(values: Any, slots: Any, signs: Any, out: Any) -> None:
    """out[n, slots[i]] += signs[i] * values[n, i] over all i; out holds zeros."""
    for n in range(len(values)):
        for i in range(values.shape[1]):
            out[n, slots[i]] += signs[i] * values[n, i]
