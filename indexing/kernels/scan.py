"""Scans of compressed vectors: inner products of one query with every row. A row's bits depend on that row alone."""

from __future__ import annotations

import numpy as np

from chamfer.core.types import F32, Array
from chamfer.indexing.kernels import _native, _numba

_LARGEST_SUM = 2**31 - 1


def quantise_rows(values: F32) -> tuple[Array, F32]:
    """(codes i8 [N, D], scales f32 [N]) with values ~ scales * codes: symmetric, the largest magnitude is 127."""
    scales = np.abs(values).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(values / safe).astype(np.int8), scales


def scan_int8(codes: Array, scales: F32, query: F32) -> F32:
    """f32 [N]: inner products of query f32 [D] with rows scales * codes, codes i8 [N, D].

    The query is rounded to 16 bits, or fewer if a sum could exceed 32; sums are integers, hence exact. Cost N D.
    """
    magnitude = np.abs(query.astype(np.float64))
    total = float(magnitude.sum())
    if total == 0:
        return np.zeros(len(codes), dtype=np.float32)
    # |sum| <= 127 * (total / step + D / 2), the second term for rounding.
    step = max(total / (_LARGEST_SUM / 127 - len(query)), float(magnitude.max()) / 32767)
    rounded = np.rint(query / step).astype(np.int16)
    scales = scales * np.float32(step)
    native = _native.scan_int8(codes, scales, rounded)
    scores: F32 = _numba.scan_int8(codes, scales, rounded) if native is None else native
    return scores


def scan_half(halves: Array, query: F32) -> F32:
    """f32 [N]: inner products of query f32 [D] with rows f16 [N, D]. Cost N D."""
    scores: F32 = _numba.scan_half(halves.view(np.uint16), np.ascontiguousarray(query, dtype=np.float32))
    return scores
