"""Calls sparse.c through ctypes, where it was built and the processor has AVX-512."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from chamfer.core.types import F32, I64, Bool
from chamfer.indexing.kernels._library import COUNT, POINTER
from chamfer.indexing.kernels._library import library as load
from chamfer.indexing.kernels.impact_types import Queries, Scratch, SegmentIndex

_SCRATCH = ("scores", "query", "uppers", "lowers", "rows", "hits", "query_terms", "best_sums", "best_rows")


class _Impacts(ctypes.Structure):
    _fields_ = (
        *((name, COUNT) for name in ("n_documents", "n_terms", "saturating")),
        *((name, COUNT) for name in ("wide_documents", "wide_terms", "float_values")),
        *((name, POINTER) for name in ("offsets", "documents", "codes")),
        *((name, POINTER) for name in ("row_offsets", "row_terms", "row_values", "norms")),
    )


class _SegmentIndex(ctypes.Structure):
    _fields_ = (("index", _Impacts), ("local", POINTER), ("first_row", COUNT))


class _Scratch(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in _SCRATCH)


class _Queries(ctypes.Structure):
    _fields_ = (
        *((name, COUNT) for name in ("n", "vocabulary")),
        *((name, POINTER) for name in ("terms", "weights", "offsets", "reads")),
    )


def library() -> Any | None:
    """The loaded library; None where it was not built or the processor has no AVX-512."""
    return load("avx512")


def search(
    segments: Sequence[SegmentIndex], scratch: Scratch, queries: Queries, k: int, allowed: Bool | None
) -> tuple[I64, F32, I64] | None:
    """See chamfer.indexing.kernels.impacts.search; None if the library is unavailable."""
    fast = library()
    if fast is None:
        return None
    if scratch.native is None:
        scratch.native = _structures(segments, scratch)
    structures, memory, vocabulary = scratch.native
    n_queries = len(queries)
    rows = np.empty((n_queries, k), dtype=np.int64)
    scores = np.empty((n_queries, k), dtype=np.float32)
    counts = np.empty(n_queries, dtype=np.int64)
    arrays = [np.ascontiguousarray(array) for array in (queries.terms, queries.weights, queries.offsets, queries.reads)]
    native_queries = _Queries(n_queries, vocabulary, *(array.ctypes.data for array in arrays))
    mask = None if allowed is None else np.ascontiguousarray(allowed)
    n_allowed = None if mask is None else _count_allowed(segments, mask)
    fast.chamfer_impacts_search(
        structures, len(segments), memory, ctypes.byref(native_queries), k, queries.rescored,
        None if mask is None else mask.ctypes.data, None if n_allowed is None else n_allowed.ctypes.data,
        rows.ctypes.data, scores.ctypes.data, counts.ctypes.data,
    )  # fmt: skip
    return rows, scores, counts


def _count_allowed(segments: Sequence[SegmentIndex], allowed: Bool) -> I64:
    """The number of allowed rows of each segment."""
    masks = (allowed[segment.first : segment.first + segment.impacts.n_documents] for segment in segments)
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)


def _structures(segments: Sequence[SegmentIndex], scratch: Scratch) -> tuple[Any, Any, int]:
    """(the segments and the working memory as the library reads them, the size of the vocabulary).

    The first two hold only addresses, and do not keep the arrays alive.
    """
    each = (_SegmentIndex(_impacts(segment), segment.local.ctypes.data, segment.first) for segment in segments)
    structures = (_SegmentIndex * len(segments))(*each)
    memory = _Scratch(*(getattr(scratch, name).ctypes.data for name in _SCRATCH))
    return structures, ctypes.byref(memory), len(segments[0].local) - 1 if segments else 0


def _impacts(segment: SegmentIndex) -> _Impacts:
    impacts = segment.impacts
    arrays = (
        *(impacts.offsets, impacts.documents, impacts.codes),
        *(impacts.row_offsets, impacts.row_terms, impacts.row_values, impacts.norms),
    )
    return _Impacts(
        impacts.n_documents, impacts.n_terms, impacts.saturating, impacts.documents.dtype == np.int32,
        impacts.row_terms.dtype == np.int32, impacts.row_values.dtype == np.float32,
        *(array.ctypes.data for array in arrays),
    )  # fmt: skip
