"""sparse.c through ctypes, where it was built and the processor has AVX-512."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.types import F32, I32, I64, Bool

if TYPE_CHECKING:
    from indexing.kernels.impacts import Impacts, Scratch

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Impacts(ctypes.Structure):
    _fields_ = (
        *((name, _COUNT) for name in ("n_documents", "n_terms", "saturating")),
        *((name, _COUNT) for name in ("wide_documents", "wide_terms", "float_values")),
        *((name, _POINTER) for name in ("offsets", "documents", "codes", "largest")),
        *((name, _POINTER) for name in ("row_offsets", "row_terms", "row_values", "norms")),
    )


class _Scratch(ctypes.Structure):
    _fields_ = tuple((name, _POINTER) for name in ("scores", "query", "uppers", "lowers", "rows", "hits", "asked"))


@cache
def library() -> Any | None:
    """The loaded library, or None: not built (no C compiler at installation), or a processor without AVX-512."""
    spec = find_spec("indexing.kernels._fast")
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    if not hasattr(loaded, "chamfer_has_avx512") or not loaded.chamfer_has_avx512():
        return None
    loaded.chamfer_impacts_search.restype = None
    loaded.chamfer_impacts_search.argtypes = [
        *[_POINTER] * 5, _COUNT, _COUNT, _POINTER, _COUNT, _POINTER, ctypes.c_float, *[_POINTER] * 3,
    ]  # fmt: skip
    return loaded


def search(
    impacts: Impacts,
    scratch: Scratch,
    query: tuple[I32, F32, I64],
    k: int,
    allowed: Bool | None,
    floors: F32 | None,
    grant: float,
) -> tuple[I64, F32, I64] | None:
    """See indexing.kernels.impacts.search; None where the library cannot be had."""
    fast = library()
    if fast is None:
        return None
    if scratch.native is None:
        scratch.native = _structures(impacts, scratch)
    index, work = scratch.native
    n_queries = len(query[2]) - 1
    rows = np.empty((n_queries, k), dtype=np.int64)
    scores = np.empty((n_queries, k), dtype=np.float32)
    counts = np.empty(n_queries, dtype=np.int64)
    n_allowed = impacts.n_documents if allowed is None else int(np.count_nonzero(allowed))
    query = (query[0], np.ascontiguousarray(query[1]), np.ascontiguousarray(query[2]))
    terms, weights, offsets = (array.ctypes.data for array in query)
    fast.chamfer_impacts_search(
        index, work, terms, weights, offsets, len(counts), k, None if allowed is None else allowed.ctypes.data,
        n_allowed, None if floors is None else floors.ctypes.data, grant,
        rows.ctypes.data, scores.ctypes.data, counts.ctypes.data,
    )  # fmt: skip
    return rows, scores, counts


def _structures(impacts: Impacts, scratch: Scratch) -> tuple[Any, Any]:
    """What the library reads and works in; both hold addresses alone."""
    arrays = (
        *(impacts.offsets, impacts.documents, impacts.codes, impacts.largest),
        *(impacts.row_offsets, impacts.row_terms, impacts.row_values, impacts.norms),
    )
    index = _Impacts(
        impacts.n_documents, impacts.n_terms, impacts.saturating, impacts.documents.dtype == np.int32,
        impacts.row_terms.dtype == np.int32, impacts.row_values.dtype == np.float32,
        *(array.ctypes.data for array in arrays),
    )  # fmt: skip
    room = (scratch.scores, scratch.query, scratch.uppers, scratch.lowers, scratch.rows, scratch.hits, scratch.asked)
    work = _Scratch(*(array.ctypes.data for array in room))
    return ctypes.byref(index), ctypes.byref(work)
