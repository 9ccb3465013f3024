"""sparse.c through ctypes, where it was built and the processor has AVX-512."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.types import F32, I64, Bool

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
    _fields_ = tuple((name, _POINTER) for name in ("scores", "query", "uppers", "lowers", "rows", "hits"))


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
        *[_POINTER] * 5, _COUNT, _COUNT, _POINTER, _COUNT, _POINTER, ctypes.c_float, *[_POINTER] * 4,
    ]  # fmt: skip
    return loaded


def search(
    impacts: Impacts,
    scratch: Scratch,
    query: tuple[I64, F32, I64],
    k: int,
    allowed: Bool | None,
    floors: F32,
    grant: float,
) -> tuple[I64, F32, I64] | None:
    """See indexing.kernels.impacts.search; None where the library cannot be had."""
    fast = library()
    if fast is None:
        return None
    if scratch.native is None:
        scratch.native = _structures(impacts, scratch)
    index, work = scratch.native
    rows = np.empty((len(floors), k), dtype=np.int64)
    scores = np.empty((len(floors), k), dtype=np.float32)
    counts = np.empty(len(floors), dtype=np.int64)
    asked = np.empty((len(query[0]) + 1, 2), dtype=np.int64)
    n_allowed = impacts.n_documents if allowed is None else int(np.count_nonzero(allowed))
    at = [array.ctypes.data for array in (*query, floors, asked, rows, scores, counts)]
    fast.chamfer_impacts_search(
        index, work, at[0], at[1], at[2], len(floors), k, None if allowed is None else allowed.ctypes.data,
        n_allowed, at[3], grant, at[4], at[5], at[6], at[7],
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
    room = (scratch.scores, scratch.query, scratch.uppers, scratch.lowers, scratch.rows, scratch.hits)
    work = _Scratch(*(array.ctypes.data for array in room))
    return ctypes.byref(index), ctypes.byref(work)
