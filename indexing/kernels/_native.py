"""Calls the functions of fast.c, half.c and fast_fde.c with numpy arrays; None if they are unavailable."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np

from chamfer.core.types import F32, I64, Array
from chamfer.indexing.kernels._library import COUNT, POINTER
from chamfer.indexing.kernels._library import library as load


def library() -> Any | None:
    """The loaded library; None where it was not built or the processor has no AVX512-BF16."""
    return load("bf16")


def maxsim_half(query: F32, values: Array, offsets: I64, rows: I64) -> F32 | None:
    """MaxSim f32 [K] through bf16 products, from values f16 [T, D]; None if unavailable, or D is no multiple of 32.

    For unit vectors and 32 query tokens the error is about 0.001.
    """
    fast = library()
    if fast is None or values.shape[1] % 32 or not values.flags.c_contiguous:
        return None
    packed = pack_query(query)
    longest = int((offsets[rows + 1] - offsets[rows]).max(initial=0))
    scratch = np.empty(max(longest, 1) * values.shape[1] // 2, dtype=np.uint32)
    scores = np.empty(len(rows), dtype=np.float32)
    arrays = [packed, values, offsets, rows, scratch, scores]
    at = [array.ctypes.data for array in arrays]
    fast.chamfer_maxsim_half(at[0], len(query), values.shape[1], at[1], at[2], at[3], len(rows), at[4], at[5])
    return scores


def products_half(values: Array, queries: F32) -> F32 | None:
    """Inner products f32 [Q, N] of queries f32 [Q, D] with values f16 [N, D], summed in any order; needs AVX-512."""
    fast = load("avx512")
    if fast is None or not values.flags.c_contiguous:
        return None
    queries = np.ascontiguousarray(queries)
    products = np.empty((len(queries), len(values)), dtype=np.float32)
    fast.chamfer_products_half(
        values.ctypes.data, queries.ctypes.data, len(queries), len(values), values.shape[1], products.ctypes.data
    )
    return products


def scan_int8(codes: Array, scales: F32, query: Array) -> F32 | None:
    """f32 [N], bit for bit as _numba.scan_int8; None if unavailable, or D is no multiple of 32."""
    fast = library()
    if fast is None or codes.shape[1] % 32 or not codes.flags.c_contiguous:
        return None
    scores = np.empty(len(codes), dtype=np.float32)
    scales, query = np.ascontiguousarray(scales), np.ascontiguousarray(query)
    fast.chamfer_scan_int8(
        codes.ctypes.data, scales.ctypes.data, query.ctypes.data, len(codes), codes.shape[1], scores.ctypes.data
    )
    return scores


def pack_query(query: F32) -> Array:
    """Query tokens f32 [Tq, D] as bf16 pairs u32 [D / 2, 32 ceil(Tq / 32)], rounded to even, padded with zeros."""
    rounded = _bf16(query)
    packed = np.zeros((query.shape[1] // 2, -(-len(query) // 32) * 32), dtype=np.uint32)
    packed[:, : len(query)] = (rounded[:, 0::2] | (rounded[:, 1::2] << 16)).T
    return packed


class FdeTables(ctypes.Structure):
    """The matrices of an encoding as fast_fde.c reads them; holds the arrays that its pointers refer to."""

    _fields_: ClassVar = [
        *((name, COUNT) for name in ("dim", "repetitions", "k", "p", "columns")),
        *((name, POINTER) for name in ("pairs", "planes", "lengths", "roundings", "projections")),
        *((name, POINTER) for name in ("slot_ends", "slot_dims", "slot_signs")),
    ]

    def __init__(self, planes: F32, projections: F32) -> None:
        """planes f32 [d, R k], projections f32 [R, d, p]."""
        repetitions, dim, p = projections.shape
        real = planes.shape[1]
        columns = -(-real // 32) * 32
        rows = np.ascontiguousarray(planes.T)
        halves = as_bf16(rows)
        sizes = np.zeros((2, columns), dtype=np.float32)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        # A float32 sum of d products, in any order, is within d 2^-24 |x| |g| of the exact one; doubled for safety.
        sizes[0, :real] = 1.001 * lengths + 1e-30
        sizes[1, :real] = 1.001 * np.linalg.norm(rows.astype(np.float64) - halves, axis=1) + dim * 2.0**-23 * lengths
        padded = np.zeros((columns, dim), dtype=np.float32)
        padded[:real] = rows
        self._kept = [pack_query(padded), rows, sizes[0], sizes[1], *_slots(projections)]
        addresses = [array.ctypes.data if array.size else 0 for array in self._kept]
        super().__init__(dim, repetitions, real // repetitions, p, columns, *addresses)


def _slots(projections: F32) -> list[Array]:
    """[projections f32 [R, d, p], slot ends i32 [R p], dimensions i32 [R d], signs f32 [R d]]; unused arrays are empty.

    A count-sketch, in which every dimension goes to one slot with a sign, uses the last three, sorted by slot; the
    identity uses none, and every other projection the first.
    """
    _, dim, p = projections.shape
    none = [np.empty(0, dtype=np.float32)] * 4
    if p == dim and (projections == np.eye(dim, dtype=np.float32)).all():
        return none
    if not (np.count_nonzero(projections, axis=2) == 1).all():
        return [np.ascontiguousarray(projections), *none[1:]]
    slots = np.argmax(projections != 0, axis=2)
    order = np.argsort(slots, axis=1, kind="stable")
    signs = np.take_along_axis(projections.sum(axis=2, dtype=np.float32), order, axis=1)
    ends = np.cumsum(np.stack([np.bincount(each, minlength=p) for each in slots]).ravel())
    return [none[0], ends.astype(np.int32), order.astype(np.int32).ravel(), np.ascontiguousarray(signs).ravel()]


def encode_fde(tables: FdeTables, values: F32, offsets: I64, *, is_query: bool, fill: bool) -> F32 | None:
    """Encodings f32 [N, R, 2^k, p] of token vectors f32 [T, d]; None if unavailable, or d is no multiple of 32.

    All NaN if a token is not finite: checking the tokens beforehand would take 5 % longer.
    """
    fast = library()
    if fast is None or tables.dim % 32:
        return None
    n, tokens, ends = len(offsets) - 1, values.ctypes.data, offsets.ctypes.data
    encodings = np.empty((n, tables.repetitions, 1 << tables.k, tables.p), dtype=np.float32)
    finite = fast.chamfer_fde(ctypes.byref(tables), tokens, ends, n, is_query, fill, encodings.ctypes.data)
    if finite < 0:
        raise MemoryError("working memory of a fixed dimensional encoding cannot be allocated")
    return encodings if finite or np.isfinite(values).all() else np.full_like(encodings, np.nan)


def as_bf16(values: F32) -> F32:
    """The values rounded to bfloat16, as f32 of the same shape."""
    return (_bf16(values) << 16).view(np.float32)


def _bf16(values: F32) -> Array:
    """The nearest bfloat16 of finite values, ties to even: its bits in u32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
