"""The C loops agree with their compiled Python twins, and are not needed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from chamfer.indexing.kernels import _native, _numba
from chamfer.indexing.kernels.dot import dots, products
from chamfer.indexing.kernels.maxsim import fast_error, maxsim_fast, maxsim_rows
from chamfer.indexing.kernels.scan import quantise_rows, scan_half, scan_int8

needs_library = pytest.mark.skipif(
    _native.library() is None, reason="fast.c was not built here, or the processor has no AVX512-BF16"
)


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    values = rng.standard_normal((n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def ragged(rng: np.random.Generator, dim: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([0, 1, 2, 11, 12, 13, 24, 25, 109, 256, 0, 5])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return unit(rng, int(offsets[-1]), dim).astype(np.float16), offsets


@needs_library
@pytest.mark.parametrize("n_query", [1, 8, 16, 31, 32, 33, 70])
@pytest.mark.parametrize("dim", [32, 128, 384])
def test_fast_maxsim_is_within_the_stated_error_and_independent_of_the_batch(n_query: int, dim: int) -> None:
    rng = np.random.default_rng(n_query * dim)
    values, offsets = ragged(rng, dim)
    query = unit(rng, n_query, dim)
    rows = np.array([8, 0, 1, 9, 4, 4, 2, 3, 5, 6, 7, 10, 11])
    exact, fast = maxsim_rows(query, values, offsets, rows), maxsim_fast(query, values, offsets, rows)
    assert _native.maxsim_half(query, values, offsets, rows) is not None
    assert np.abs(exact - fast).max() <= fast_error(query, 1.001)
    assert np.abs(exact - fast).max() <= 0.012 * np.sqrt(n_query / dim)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(maxsim_fast(query, values, offsets, np.array([row])), fast[i : i + 1])


@needs_library
@pytest.mark.parametrize("dim", [32, 64, 96, 2560])
def test_the_int8_scan_has_the_bits_of_its_twin(dim: int) -> None:
    rng = np.random.default_rng(dim)
    codes, scales = quantise_rows(rng.standard_normal((37, dim)).astype(np.float32))
    query = rng.integers(-32767, 32768, dim).astype(np.int16) // np.int16(max(1, dim // 128))
    np.testing.assert_array_equal(_native.scan_int8(codes, scales, query), _numba.scan_int8(codes, scales, query))


def test_without_the_library_the_twins_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    values, offsets = ragged(rng, 64)
    query, rows = unit(rng, 9, 64), np.arange(12)
    codes, scales = quantise_rows(rng.standard_normal((5, 64)).astype(np.float32))
    with_library = scan_int8(codes, scales, query[0])
    monkeypatch.setattr(_native, "library", lambda: None)
    np.testing.assert_array_equal(maxsim_fast(query, values, offsets, rows), maxsim_rows(query, values, offsets, rows))
    np.testing.assert_array_equal(scan_int8(codes, scales, query[0]), with_library)


@pytest.mark.parametrize("dim", [7, 64, 2560])
def test_scans_are_inner_products(dim: int) -> None:
    rng = np.random.default_rng(dim)
    values = rng.standard_normal((20, dim)).astype(np.float32)
    query = rng.standard_normal(dim).astype(np.float32)
    codes, scales = quantise_rows(values)
    expected = (codes.astype(np.float64) * scales[:, None]) @ query.astype(np.float64)
    size = np.linalg.norm(query) * np.linalg.norm(values, axis=1).max()
    np.testing.assert_allclose(scan_int8(codes, scales, query), expected, atol=1e-4 * size)
    halves = values.astype(np.float16)
    np.testing.assert_allclose(scan_half(halves, query), halves.astype(np.float64) @ query, rtol=1e-4, atol=1e-4)
    assert not scan_int8(codes, scales, np.zeros(dim, np.float32)).any()


def test_extreme_queries_do_not_overflow_the_integer_sums() -> None:
    codes = np.full((2, 4096), 127, dtype=np.int8)
    codes[1] = -127
    scales = np.ones(2, dtype=np.float32)
    for query in (np.ones(4096, np.float32), np.full(4096, 1e20, np.float32), np.eye(1, 4096, dtype=np.float32)[0]):
        expected = codes.astype(np.float64) @ query.astype(np.float64)
        np.testing.assert_allclose(scan_int8(codes, scales, query), expected, rtol=1e-3)


def test_rounded_codes_are_within_half_a_step() -> None:
    values = np.random.default_rng(3).standard_normal((9, 50)).astype(np.float32)
    values[4] = 0
    codes, scales = quantise_rows(values)
    assert (np.abs(codes * scales[:, None] - values) <= scales[:, None] * 0.5001).all()
    assert not codes[4].any()


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=needs_library), False])
@pytest.mark.parametrize(("n", "dim", "n_queries"), [(1, 1, 1), (5, 17, 3), (70, 384, 1), (33, 100, 16), (4, 16, 5)])
def test_products_with_float16_rows_are_inner_products(
    n: int, dim: int, n_queries: int, with_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_library:
        monkeypatch.setattr(_native, "load", lambda instructions: None)
    rng = np.random.default_rng(n)
    halves = rng.standard_normal((n, dim)).astype(np.float16)
    queries = rng.standard_normal((n_queries, dim)).astype(np.float32)
    expected = queries.astype(np.float64) @ halves.astype(np.float64).T
    np.testing.assert_allclose(products(halves, queries), expected, rtol=1e-4, atol=1e-4)
    assert products(halves[:0], queries).shape == (n_queries, 0)
    np.testing.assert_array_equal(dots(halves, queries[0]), dots(halves.astype(np.float32), queries[0]))


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=needs_library), False])
@pytest.mark.parametrize("n_queries", [1, 4])
def test_products_with_float16_rows_hold_no_float32_copy_of_them(
    n_queries: int, with_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_library:
        monkeypatch.setattr(_native, "load", lambda instructions: None)
    halves = np.zeros((20_000, 384), dtype=np.float16)
    queries = np.zeros((n_queries, 384), dtype=np.float32)
    products(halves[:10], queries)  # compiles
    tracemalloc.start()
    products(halves, queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * halves.nbytes / 10
