"""The compiled C loops (fast.c), where they were built and the processor has what they need; None elsewhere."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from chamfer.types import F32, I64, Array

_POINTER = ctypes.c_void_p
_COUNT = ctypes.c_int64


@cache
def library() -> Any | None:
    """The loaded library, or None: not built (no C compiler at installation), or a processor without AVX512-BF16."""
    spec = find_spec("indexing.kernels._fast")
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    if not loaded.chamfer_has_bf16():
        return None
    loaded.chamfer_maxsim_half.argtypes = [_POINTER, _COUNT, _COUNT, *[_POINTER] * 3, _COUNT, _POINTER, _POINTER]
    loaded.chamfer_maxsim_half.restype = None
    loaded.chamfer_scan_int8.argtypes = [*[_POINTER] * 3, _COUNT, _COUNT, _POINTER]
    loaded.chamfer_scan_int8.restype = None
    return loaded


def maxsim_half(query: F32, values: Array, offsets: I64, rows: I64) -> F32 | None:
    """MaxSim f32 [K] through bf16 products, from values f16 [T, D]; None where it cannot be had (D no multiple of 32).

    Unit vectors and 32 query tokens: off by some 0.001.
    """
    fast = library()
    if fast is None or values.shape[1] % 32 or not values.flags.c_contiguous:
        return None
    packed = pack_query(query)
    longest = int((offsets[rows + 1] - offsets[rows]).max(initial=0))
    scratch = np.empty(max(longest, 1) * values.shape[1] // 2, dtype=np.uint32)
    out = np.empty(len(rows), dtype=np.float32)
    groups = packed.shape[1] // 32
    arrays = [packed, values, offsets, rows, scratch, out]
    at = [array.ctypes.data for array in arrays]
    fast.chamfer_maxsim_half(at[0], groups, values.shape[1], at[1], at[2], at[3], len(rows), at[4], at[5])
    return out


def scan_int8(codes: Array, scales: F32, query: Array) -> F32 | None:
    """f32 [N]: as _numba.scan_int8, the same bits; None where it cannot be had."""
    fast = library()
    if fast is None or codes.shape[1] % 32 or not codes.flags.c_contiguous:
        return None
    out = np.empty(len(codes), dtype=np.float32)
    scales, query = np.ascontiguousarray(scales), np.ascontiguousarray(query)
    fast.chamfer_scan_int8(
        codes.ctypes.data, scales.ctypes.data, query.ctypes.data, len(codes), codes.shape[1], out.ctypes.data
    )
    return out


def pack_query(query: F32) -> Array:
    """Query tokens f32 [Tq, D] as bf16 pairs u32 [D / 2, 32 ceil(Tq / 32)], nearest even; beyond the query zeros."""
    bits = np.ascontiguousarray(query, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    out = np.zeros((query.shape[1] // 2, -(-len(query) // 32) * 32), dtype=np.uint32)
    out[:, : len(query)] = (rounded[:, 0::2] | (rounded[:, 1::2] << 16)).T
    return out
