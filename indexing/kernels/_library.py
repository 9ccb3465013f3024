"""Loads the compiled C library once, and reports which of its functions this processor can run."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

Instructions = Literal["avx512", "bf16"]  # bf16: AVX-512 with VNNI and BF16

POINTER = ctypes.c_void_p
COUNT = ctypes.c_int64
_INT = ctypes.c_int

_ARGUMENTS: dict[str, list[Any]] = {
    "chamfer_maxsim_half": [POINTER, COUNT, COUNT, *[POINTER] * 3, COUNT, POINTER, POINTER],
    "chamfer_scan_int8": [*[POINTER] * 3, COUNT, COUNT, POINTER],
    "chamfer_products_half": [POINTER, POINTER, COUNT, COUNT, COUNT, POINTER],
    "chamfer_scan_centroids": [*[POINTER] * 3, COUNT, POINTER],
    "chamfer_decode": [*[POINTER] * 5, COUNT, COUNT, *[POINTER] * 2, COUNT, POINTER],
    "chamfer_maxsim_codes": [
        *[POINTER] * 3, COUNT, *[POINTER] * 3, COUNT, COUNT, POINTER, POINTER, COUNT, POINTER, POINTER,
    ],
    "chamfer_impacts_search": [POINTER, COUNT, POINTER, POINTER, COUNT, COUNT, *[POINTER] * 5],
}  # fmt: skip


@cache
def library(instructions: Instructions) -> Any | None:
    """The library, or None: not built (no C compiler at installation), or a processor without these instructions."""
    loaded = _loaded()
    return loaded if loaded is not None and getattr(loaded, f"chamfer_has_{instructions}")() else None


@cache
def _loaded() -> Any | None:
    """The library with the types of its functions; None if it is missing, or was built from older sources."""
    spec = find_spec("chamfer.indexing.kernels._fast")
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    try:
        if not loaded.chamfer_has_avx512():  # then it may lack the functions themselves
            return None
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        loaded.chamfer_fde.argtypes = [*[POINTER] * 3, COUNT, _INT, _INT, POINTER]
        loaded.chamfer_fde.restype = _INT
    except AttributeError:
        return None
    return loaded
