"""Calls the functions of late.c with numpy arrays; False or None if unavailable (see _native.library)."""

from __future__ import annotations

import numpy as np

from chamfer.core.types import F32, I64, Array
from chamfer.indexing.kernels import _native

_BYTES = 16  # bytes of codes that are decoded at a time


def scan_centroids(table: Array, ids: Array, offsets: I64, out: Array) -> bool:
    """As _numba_late.scan_centroids, bit for bit."""
    fast = _native.library()
    if fast is None or table.shape[1] != 32 or not (ids.flags.c_contiguous and table.flags.c_contiguous):
        return False
    offsets = np.ascontiguousarray(offsets)
    fast.chamfer_scan_centroids(table.ctypes.data, ids.ctypes.data, offsets.ctypes.data, len(out), out.ctypes.data)
    return True


def decode(
    arrays: tuple[Array, Array, Array], lowest: F32, step: F32, bits: int, offsets: I64, rows: I64
) -> Array | None:
    """Token vectors f16 of documents `rows`, concatenated, from (codes, ids, scales); see kernels.codes."""
    codes, ids, scales = arrays
    fast = _native.library()
    if fast is None or not _fits(codes, len(step), bits, _BYTES):
        return None
    if not all(array.flags.c_contiguous for array in (codes, ids, scales, lowest, step, offsets, rows)):
        return None
    decoded = np.empty((int((offsets[rows + 1] - offsets[rows]).sum()), len(step)), dtype=np.float16)
    at = [array.ctypes.data for array in (codes, ids, scales, lowest, step, offsets, rows, decoded)]
    ids_at = at[1] if len(ids) else None
    fast.chamfer_decode(at[0], ids_at, *at[2:5], len(step), bits, at[5], at[6], len(rows), at[7])
    return decoded


def maxsim_codes(
    query: tuple[Array, F32, F32], arrays: tuple[Array, Array, Array], bits: int, offsets: I64, rows: I64
) -> F32 | None:
    """MaxSim f32 [K] of (bytes i8 [G, D/4, 16, 4], units f32 [16 G], table f32 [K, 16 G]) with coded documents."""
    codes, ids, scales = arrays
    fast = _native.library()
    dim = 4 * query[0].shape[1]
    if fast is None or not _fits(codes, dim, bits, 2 * _BYTES):
        return None
    if not all(array.flags.c_contiguous for array in (*query, *arrays, offsets, rows)):
        return None
    longest = int((offsets[rows + 1] - offsets[rows]).max(initial=0))
    scratch = np.empty(max(longest, 1) * dim, dtype=np.uint8)
    scores = np.empty(len(rows), dtype=np.float32)
    packed, units, table = (array.ctypes.data for array in query)
    codes_at, ids_at, scales_at = codes.ctypes.data, ids.ctypes.data if len(ids) else None, scales.ctypes.data
    head = packed, units, table, len(query[0]), codes_at, ids_at, scales_at, dim, bits
    tail = offsets.ctypes.data, rows.ctypes.data, len(rows), scratch.ctypes.data, scores.ctypes.data
    fast.chamfer_maxsim_codes(*head, *tail)
    return scores


def whole_bits(bits: int) -> int:
    """The bits of a code that are packed together in a byte; of 3 bits, the third is stored in a bitmap."""
    return 2 if bits == 3 else bits


def _fits(codes: Array, dim: int, bits: int, step: int) -> bool:
    """Whether the codes of a token can be read in whole steps of `step` bytes."""
    return codes.shape[1] * 8 == dim * bits and dim * whole_bits(bits) % (8 * step) == 0
