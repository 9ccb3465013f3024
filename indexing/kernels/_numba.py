"""Compiled loops, imported only by other kernels. Operations are in a fixed order: equal input gives equal bits.

Only `dots` and `scan_half` let the compiler reorder a sum, in the same way every time on one processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.compilation import compiled

_REORDERED = frozenset({"reassoc", "contract", "nsz"})  # sums may be reordered and multiplications fused


@compiled()
def dot_rows(values: Any, query: Any) -> Any:
    """f32 [K]: inner products of values f32 [K, D] with query f64 [D], summed in float64 in eight lanes."""
    products = np.empty(len(values), np.float32)
    dim = values.shape[1]
    whole = dim - dim % 8
    lanes = np.empty(8, np.float64)
    for row in range(len(values)):
        lanes[:] = 0.0
        for start in range(0, whole, 8):
            for lane in range(8):
                lanes[lane] += np.float64(values[row, start + lane]) * query[start + lane]
        total = 0.0
        for lane in range(8):
            total += lanes[lane]
        for d in range(whole, dim):
            total += np.float64(values[row, d]) * query[d]
        products[row] = total
    return products


@compiled(fastmath=_REORDERED)
def dots(values: Any, query: Any) -> Any:
    """f32 [N]: inner products of values f32 [N, D] with query f32 [D], summed in any order."""
    products = np.empty(len(values), np.float32)
    for row in range(len(values)):
        total = np.float32(0.0)
        for d in range(values.shape[1]):
            total += values[row, d] * query[d]
        products[row] = total
    return products


@compiled()
def half_to_float(halves: Any, out: Any) -> None:
    """Converts finite float16 bit patterns u16 [n] to float32 [n], exactly; a multiplication re-biases the exponent."""
    bits = out.view(np.uint32)
    for i in range(len(halves)):
        half = np.uint32(halves[i])
        bits[i] = (half & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(len(halves)):
        out[i] = out[i] * np.float32(5.192296858534828e33)  # 2 ** 112
    for i in range(len(halves)):
        bits[i] |= (np.uint32(halves[i]) & np.uint32(0x8000)) << np.uint32(16)


@compiled()
def maxsim_float(columns: Any, values: Any, offsets: Any, rows: Any) -> Any:
    """f32 [K]: MaxSim of a query, as columns f32 [D, Tq], with token matrices values[offsets[r]:offsets[r+1]]."""
    scores = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        start, stop = offsets[rows[i]], offsets[rows[i] + 1]
        scores[i] = 0.0 if stop == start else _sum_of_best(np.dot(values[start:stop], columns))
    return scores


@compiled()
def maxsim_half(columns: Any, halves: Any, offsets: Any, rows: Any) -> Any:
    """As maxsim_float over float16 values given by their bit patterns u16 [T, D]."""
    scores = np.empty(len(rows), np.float32)
    longest = 0
    for i in range(len(rows)):
        longest = max(longest, offsets[rows[i] + 1] - offsets[rows[i]])
    dim = halves.shape[1]
    scratch = np.empty(longest * dim, np.float32)
    for i in range(len(rows)):
        start, stop = offsets[rows[i]], offsets[rows[i] + 1]
        if stop == start:
            scores[i] = 0.0
            continue
        flat = scratch[: (stop - start) * dim]
        half_to_float(halves[start:stop].reshape(-1), flat)
        scores[i] = _sum_of_best(np.dot(flat.reshape((stop - start, dim)), columns))
    return scores


@compiled()
def _sum_of_best(products: Any) -> float:
    """Sum over columns of products f32 [Td, Tq] of their maximum, in float64."""
    best = products[0].copy()
    for t in range(1, products.shape[0]):
        for s in range(len(best)):
            value = products[t, s]
            best[s] = value if value > best[s] else best[s]  # a conditional vectorises, max() does not
    total = 0.0
    for s in range(len(best)):
        total += best[s]
    return total


@compiled()
def scan_int8(codes: Any, scales: Any, query: Any) -> Any:
    """f32 [N]: scales f32 [N] times the integer inner products of codes i8 [N, D] with query i16 [D]."""
    scores = np.empty(len(codes), np.float32)
    for row in range(len(codes)):
        total = np.int32(0)
        for d in range(codes.shape[1]):
            total += np.int32(codes[row, d]) * np.int32(query[d])
        scores[row] = np.float32(total) * scales[row]
    return scores


@compiled(fastmath=_REORDERED)
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0.0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@compiled()
def scan_half(halves: Any, query: Any) -> Any:
    """f32 [N]: inner products of float16 rows, bit patterns u16 [N, D], with query f32 [D]."""
    products = np.empty(len(halves), np.float32)
    wide = np.empty(halves.shape[1], np.float32)
    for row in range(len(halves)):
        half_to_float(halves[row], wide)
        products[row] = _dot(wide, query)
    return products


@compiled()
def assign_codes(values: Any, columns: Any, codes: Any) -> None:
    """Nearest centroid of every 8 dimensions of values f32 [n, D] into codes u8 [n, M]; columns f32 [C, 8, 256]."""
    n_groups = codes.shape[1]
    distances = np.empty(columns.shape[2], np.float32)
    for row in range(len(values)):
        for group in range(n_groups):
            book = columns[group * len(columns) // n_groups]
            distances[:] = 0.0
            for d in range(len(book)):
                value = values[row, group * len(book) + d]
                for c in range(len(distances)):
                    distances[c] += (book[d, c] - value) * (book[d, c] - value)
            best = 0
            for c in range(1, len(distances)):
                best = c if distances[c] < distances[best] else best
            codes[row, group] = best


@compiled()
def scan_tables(codes: Any, tables: Any) -> Any:
    """f32 [n]: sums of tables f32 [M, 256] at codes u8 [n, M], in four lanes."""
    scores = np.empty(len(codes), np.float32)
    whole = codes.shape[1] - codes.shape[1] % 4
    for row in range(len(codes)):
        a = b = c = d = np.float32(0.0)
        for m in range(0, whole, 4):
            a += tables[m, codes[row, m]]
            b += tables[m + 1, codes[row, m + 1]]
            c += tables[m + 2, codes[row, m + 2]]
            d += tables[m + 3, codes[row, m + 3]]
        for m in range(whole, codes.shape[1]):
            a += tables[m, codes[row, m]]
        scores[row] = (a + b) + (c + d)
    return scores
