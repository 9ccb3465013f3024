"""`make sanitize` runs the instrumented library, and the instrumentation catches a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chamfer.indexing.kernels._library import library

plugin = sys.modules.get("support_sanitized")
pytestmark = pytest.mark.skipif(plugin is None, reason="runs under `make sanitize` only")

READ_BEYOND_THE_END = """
import numpy as np
import support_sanitized
from chamfer.indexing.kernels._library import library

codes, query = np.zeros((1, 64), dtype=np.int8), np.zeros(64, dtype=np.int8)
scales, scores = np.ones(200, dtype=np.float32), np.zeros(200, dtype=np.float32)
arrays = [codes.ctypes.data, scales.ctypes.data, query.ctypes.data]
library("avx512").chamfer_scan_int8(*arrays, 200, 64, scores.ctypes.data)
"""


def test_the_instrumented_library_is_the_one_that_was_loaded() -> None:
    loaded = library("avx512")
    if loaded is None:
        pytest.skip("this processor has no AVX-512: no C loop can run")
    assert Path(loaded._name) == plugin.LIBRARY  # type: ignore[union-attr]
    assert b"__asan_init" in plugin.LIBRARY.read_bytes()  # type: ignore[union-attr]
    assert b"__ubsan_handle" in plugin.LIBRARY.read_bytes()  # type: ignore[union-attr]


def test_a_read_beyond_the_end_of_an_array_stops_the_process() -> None:
    if library("avx512") is None:
        pytest.skip("this processor has no AVX-512: no C loop can run")
    done = subprocess.run([sys.executable, "-c", READ_BEYOND_THE_END], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
