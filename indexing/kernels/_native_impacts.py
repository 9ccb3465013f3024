"""sparse.c through ctypes, where it was built and the processor has AVX-512."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.types import F32, I64, Bool

if TYPE_CHECKING:
    from chamfer.indexing.kernels.impacts import Asked, Part, Scratch

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
ROOM = ("scores", "query", "uppers", "lowers", "rows", "hits", "asked", "best_sums", "best_rows")  # of a Scratch


class _Impacts(ctypes.Structure):
    _fields_ = (
        *((name, _COUNT) for name in ("n_documents", "n_terms", "saturating")),
        *((name, _COUNT) for name in ("wide_documents", "wide_terms", "float_values")),
        *((name, _POINTER) for name in ("offsets", "documents", "codes")),
        *((name, _POINTER) for name in ("row_offsets", "row_terms", "row_values", "norms")),
    )


class _Part(ctypes.Structure):
    _fields_ = (("index", _Impacts), ("local", _POINTER), ("first_row", _COUNT))


class _Scratch(ctypes.Structure):
    _fields_ = tuple((name, _POINTER) for name in ROOM)


class _Queries(ctypes.Structure):
    _fields_ = (
        *((name, _COUNT) for name in ("n", "vocabulary")),
        *((name, _POINTER) for name in ("terms", "weights", "offsets", "reads")),
    )


@cache
def library() -> Any | None:
    """The loaded library, or None: not built (no C compiler at installation), or a processor without AVX-512."""
    spec = find_spec("chamfer.indexing.kernels._fast")
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    if not hasattr(loaded, "chamfer_has_avx512") or not loaded.chamfer_has_avx512():
        return None
    loaded.chamfer_impacts_search.restype = None
    loaded.chamfer_impacts_search.argtypes = [
        _POINTER, _COUNT, _POINTER, _POINTER, _COUNT, _COUNT, *[_POINTER] * 5,
    ]  # fmt: skip
    return loaded


def search(
    parts: Sequence[Part], scratch: Scratch, asked: Asked, k: int, allowed: Bool | None
) -> tuple[I64, F32, I64] | None:
    """See chamfer.indexing.kernels.impacts.search; None where the library cannot be had."""
    fast = library()
    if fast is None:
        return None
    if scratch.native is None:
        scratch.native = _structures(parts, scratch)
    segments, work, vocabulary = scratch.native
    n_queries = len(asked)
    rows = np.empty((n_queries, k), dtype=np.int64)
    scores = np.empty((n_queries, k), dtype=np.float32)
    counts = np.empty(n_queries, dtype=np.int64)
    arrays = [np.ascontiguousarray(array) for array in (asked.terms, asked.weights, asked.offsets, asked.reads)]
    queries = _Queries(n_queries, vocabulary, *(array.ctypes.data for array in arrays))
    mask = None if allowed is None else np.ascontiguousarray(allowed)
    ones = None if mask is None else _ones(parts, mask)
    fast.chamfer_impacts_search(
        segments, len(parts), work, ctypes.byref(queries), k, asked.rescored,
        None if mask is None else mask.ctypes.data, None if ones is None else ones.ctypes.data,
        rows.ctypes.data, scores.ctypes.data, counts.ctypes.data,
    )  # fmt: skip
    return rows, scores, counts


def _ones(parts: Sequence[Part], allowed: Bool) -> I64:
    """How many rows of each part are allowed."""
    each = (allowed[part.first : part.first + part.impacts.n_documents] for part in parts)
    return np.array([np.count_nonzero(own) for own in each], dtype=np.int64)


def _structures(parts: Sequence[Part], scratch: Scratch) -> tuple[Any, Any, int]:
    """What the library reads and works in, and the vocabulary's size; both hold addresses alone."""
    segments = (_Part * len(parts))(*(_Part(_impacts(part), part.local.ctypes.data, part.first) for part in parts))
    work = _Scratch(*(getattr(scratch, name).ctypes.data for name in ROOM))
    return segments, ctypes.byref(work), len(parts[0].local) - 1 if parts else 0


def _impacts(part: Part) -> _Impacts:
    own = part.impacts
    arrays = (
        *(own.offsets, own.documents, own.codes),
        *(own.row_offsets, own.row_terms, own.row_values, own.norms),
    )
    return _Impacts(
        own.n_documents, own.n_terms, own.saturating, own.documents.dtype == np.int32,
        own.row_terms.dtype == np.int32, own.row_values.dtype == np.float32,
        *(array.ctypes.data for array in arrays),
    )  # fmt: skip
