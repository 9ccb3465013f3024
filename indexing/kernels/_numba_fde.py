"""Compiled twins of fast_fde.c. Each document has its own matrix product, so that its bits depend on it alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.compilation import compiled


@compiled()
def encode_documents(
    values: Any, offsets: Any, planes: Any, margins: Any, projections: Any, fill: bool, out: Any
) -> None:
    """Document encodings into out f32 [N, R, B, p]; planes f32 [R k, d]."""
    n_reps, dim, _ = projections.shape
    n_cells = out.shape[2]
    k = len(planes) // n_reps
    keys = np.empty(n_cells, np.int64)
    rows = np.empty((n_cells, dim), np.float32)
    counts = np.empty(n_cells, np.int64)
    first = np.empty(n_cells, np.int64)
    cells = np.empty((n_reps, _longest(offsets)), np.int64)
    for n in range(len(offsets) - 1):
        tokens = values[offsets[n] : offsets[n + 1]]
        if len(tokens) == 0:
            out[n] = 0.0
            continue
        cells_of(tokens, planes, margins, k, cells)
        for r in range(n_reps):
            _add_up(tokens, cells[r], rows, counts, first)
            _divide(rows, counts)
            if fill:
                nearest_tokens(counts, first, keys)
            for cell in range(n_cells):
                if counts[cell] == 0:
                    if fill:
                        rows[cell] = tokens[first[cell]]
                    else:
                        rows[cell] = 0.0
            np.dot(rows, projections[r], out[n, r])


@compiled()
def encode_queries(values: Any, offsets: Any, planes: Any, margins: Any, projections: Any, out: Any) -> None:
    """Query encodings into out f32 [N, R, B, p], which holds zeros; planes f32 [R k, d]."""
    n_reps, dim, _ = projections.shape
    k = len(planes) // n_reps
    longest = _longest(offsets)
    cells = np.empty((n_reps, longest), np.int64)
    rows = np.empty((longest, dim), np.float32)
    row_of = np.empty(out.shape[2], np.int64)
    used = np.empty(longest, np.int64)
    for n in range(len(offsets) - 1):
        tokens = values[offsets[n] : offsets[n + 1]]
        if len(tokens) == 0:
            continue
        cells_of(tokens, planes, margins, k, cells)
        for r in range(n_reps):
            n_used = _add_up_used(tokens, cells[r], rows, row_of, used)
            projected = np.dot(rows[:n_used], projections[r])
            for u in range(n_used):
                out[n, r, used[u]] = projected[u]


@compiled()
def _longest(offsets: Any) -> Any:
    longest = 0
    for n in range(len(offsets) - 1):
        longest = max(longest, offsets[n + 1] - offsets[n])
    return longest


@compiled()
def cells_of(tokens: Any, planes: Any, margins: Any, k: int, cells: Any) -> None:
    """The cell of every token in every repetition, into cells i64 [R, >= L]; planes f32 [R k, d].

    The sign of a product decides if its magnitude exceeds its error bound, margins f32 [R k] times |x|; otherwise
    `side` decides. Hence the cells do not depend on how the products are computed.
    """
    if k == 0:
        cells[:] = 0
        return
    products = np.dot(tokens, planes.T)
    for t in range(len(tokens)):
        square = np.float32(0.0)
        for d in range(tokens.shape[1]):
            square += tokens[t, d] * tokens[t, d]
        length = np.float32(1.001) * np.sqrt(square) + np.float32(1e-17)
        for r in range(len(cells)):
            cell = np.int64(0)
            for bit in range(k):
                product = products[t, r * k + bit]
                above = product > 0.0
                if not abs(product) > margins[r * k + bit] * length:
                    above = side(tokens[t], planes[r * k + bit]) > 0.0
                cell |= np.int64(above) << bit
            cells[r, t] = cell


@compiled()
def side(token: Any, plane: Any) -> Any:
    """<token, plane> in float64, summed in 16 lanes and then by halves: its sign defines the side."""
    lanes = np.zeros(16, np.float64)
    whole = len(token) - len(token) % 16
    for start in range(0, whole, 16):
        for lane in range(16):
            lanes[lane] += np.float64(token[start + lane]) * np.float64(plane[start + lane])
    half = 8
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    total = lanes[0]
    for d in range(whole, len(token)):
        total += np.float64(token[d]) * np.float64(plane[d])
    return total


@compiled()
def _add_up(tokens: Any, cells: Any, rows: Any, counts: Any, first: Any) -> None:
    """The sum f32 [B, d] and number i64 [B] of the tokens of every cell, and its lowest token."""
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


@compiled()
def _add_up_used(tokens: Any, cells: Any, rows: Any, row_of: Any, used: Any) -> Any:
    """Sums of only the occupied cells, stored consecutively in `rows`; `used` lists the cells. Returns their number."""
    row_of[:] = -1
    n_used = 0
    for t in range(len(tokens)):
        row = row_of[cells[t]]
        if row < 0:
            row_of[cells[t]] = n_used
            used[n_used] = cells[t]
            rows[n_used] = tokens[t]
            n_used += 1
        else:
            for d in range(tokens.shape[1]):
                rows[row, d] += tokens[t, d]
    return n_used


@compiled()
def _divide(rows: Any, counts: Any) -> None:
    """Divides the sum of every cell by its number of tokens, in place."""
    for cell in range(len(counts)):
        if counts[cell] > 1:
            scale = np.float32(1.0) / np.float32(counts[cell])
            for d in range(rows.shape[1]):
                rows[cell, d] *= scale


@compiled()
def nearest_tokens(counts: Any, first: Any, keys: Any) -> None:
    """For every cell the lowest token among those in the nearest occupied cells, into first i64 [2^k].

    A (min, +) convolution over the k-cube, bit by bit, of keys distance << 40 | token. `first` holds the
    lowest token of each occupied cell (counts > 0), of which there must be at least one.
    """
    step, far = np.int64(1), np.int64(1) << 40
    for cell in range(len(counts)):
        keys[cell] = first[cell] if counts[cell] > 0 else 64 * far
    while step < len(counts):
        for cell in range(len(counts)):
            if cell & step == 0:
                low, high = keys[cell], keys[cell + step]
                keys[cell] = min(low, high + far)
                keys[cell + step] = min(high, low + far)
        step *= 2
    for cell in range(len(counts)):
        first[cell] = keys[cell] & (far - 1)


@compiled()
def sketch_rows(values: Any, slots: Any, signs: Any, out: Any) -> None:
    """out[n, slots[i]] += signs[i] * values[n, i] over all i; out holds zeros."""
    for n in range(len(values)):
        for i in range(values.shape[1]):
            out[n, slots[i]] += signs[i] * values[n, i]
