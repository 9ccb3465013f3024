"""Codes of token vectors and centroid scores, against their formulas and their twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support_codes import unpacked_codes

from chamfer.indexing.kernels import _native, _native_late, _numba_late
from chamfer.indexing.kernels.centroids import assign, scan, score_table, train
from chamfer.indexing.kernels.codes import TokenCodec, decode, encode, learn_step, maxsim_codes, maxsim_codes_error
from chamfer.indexing.kernels.maxsim import maxsim_plain

needs_library = pytest.mark.skipif(_native.library() is None, reason="the C loops were not built here")
BITS = (2, 3, 4, 8)
LENGTHS = np.array([0, 1, 2, 11, 12, 13, 109, 0, 256, 5])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    values = rng.standard_normal((n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def coded(bits: int, dim: int, k: int) -> tuple[np.ndarray, TokenCodec, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    tokens = unit(np.random.default_rng(bits + dim + k), int(OFFSETS[-1]), dim)
    centroids = train(tokens, k, seed=1)
    codec = TokenCodec(centroids, learn_step(tokens, centroids, bits), bits)
    return tokens, codec, encode(tokens, codec)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [7, 12, 32, 128])
def test_decoding_is_the_formula_and_keeps_lengths(bits: int, dim: int) -> None:
    tokens, codec, (codes, ids, scales) = coded(bits, dim, 9)
    whole = 2 if bits == 3 else bits
    width = -(-dim * whole // 8)
    assert codes.shape == (len(tokens), width + (-(-dim // 8) if bits == 3 else 0))
    numbers = unpacked_codes(codes, bits, dim)
    expected = scales[:, None] * (codec.centroids[ids] + codec.step * (numbers - (2**bits - 1) / 2))
    rows = np.array([8, 3, 0, 6, 6])
    decoded = decode((codes, ids, scales), codec, codec.lowest, OFFSETS, rows)
    wanted = np.concatenate([expected[OFFSETS[r] : OFFSETS[r + 1]] for r in rows])
    np.testing.assert_allclose(decoded, wanted, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-3)
    error = np.square(expected - tokens).sum(axis=1).mean()
    assert error < {2: 0.15, 3: 0.05, 4: 0.02, 8: 0.001}[bits]


@needs_library
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [1, 9])
def test_both_decoders_agree_to_a_float16_step(bits: int, k: int) -> None:
    _, codec, arrays = coded(bits, 128, k)
    codes, ids, scales = arrays
    rows = np.array([6, 1, 0, 8], dtype=np.int64)
    fast = _native_late.decode(arrays, codec.lowest, codec.step, bits, OFFSETS, rows)
    assert fast is not None
    tokens = np.concatenate([np.arange(OFFSETS[r], OFFSETS[r + 1]) for r in rows])
    slow = _numba_late.decode(codes, ids, scales[tokens].astype(np.float32), codec.lowest, codec.step, bits, tokens)
    np.testing.assert_allclose(fast.astype(np.float32), slow, rtol=2**-10, atol=1e-6)


@needs_library
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n_query", [1, 15, 16, 17, 40])
def test_maxsim_over_codes_is_within_the_stated_error_and_independent_of_the_batch(bits: int, n_query: int) -> None:
    _, codec, arrays = coded(bits, 128, 9)
    query = unit(np.random.default_rng(n_query), n_query, 128)
    rows = np.array([6, 1, 0, 8, 2, 3, 4, 5, 9, 7, 6], dtype=np.int64)
    scores = maxsim_codes(query, arrays, codec, OFFSETS, rows)
    assert scores is not None
    everything = decode(arrays, codec, codec.lowest, OFFSETS, np.arange(len(LENGTHS)))
    expected = maxsim_plain(query, everything, OFFSETS, rows)
    assert np.abs(scores - expected).max() <= maxsim_codes_error(query, codec, 1.01)
    assert np.abs(scores - expected).max() <= 0.01 * np.sqrt(n_query)
    assert scores[2] == scores[9] == 0
    for i, row in enumerate(rows):
        alone = maxsim_codes(query, arrays, codec, OFFSETS, np.array([row]))
        np.testing.assert_array_equal(alone, scores[i : i + 1])


@pytest.mark.parametrize("n_query", [1, 31, 32, 33, 70])
def test_centroid_scores_are_maxsim_with_every_token_at_its_centroid(n_query: int) -> None:
    _tokens, codec, (_, ids, _) = coded(2, 64, 20)
    query = unit(np.random.default_rng(n_query), n_query, 64)
    table = score_table(query, codec.centroids)
    scores = scan(table, ids, OFFSETS)
    products = codec.centroids @ query.T
    step = (products.max(axis=0) - products.min(axis=0)).max() / 255
    shifted = products - products.min(axis=0)
    expected = [shifted[ids[a:b]].max(axis=0).sum() if b > a else 0 for a, b in itertools.pairwise(OFFSETS)]
    np.testing.assert_allclose(scores * step, expected, atol=0.51 * step * n_query)
    assert scores[0] == 0
    slow = np.zeros(len(LENGTHS), np.int32)
    for part in table:
        _numba_late.scan_centroids(part, ids, OFFSETS, slow)
    np.testing.assert_array_equal(slow, scores)


def test_training_is_deterministic_and_lowers_the_distance_to_the_nearest_centroid() -> None:
    tokens = unit(np.random.default_rng(3), 2000, 16)
    first, second = train(tokens, 40, seed=5), train(tokens, 40, seed=5)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, train(tokens, 40, seed=6))
    drawn = tokens[np.sort(np.random.default_rng(5).choice(len(tokens), 40, replace=False))]

    def spread(centroids: np.ndarray) -> float:
        return float(np.square(tokens - centroids[assign(tokens, centroids)]).sum())

    assert spread(first) < 0.95 * spread(drawn)
    assert train(tokens[:50], 40, seed=5).shape == (6, 16)


def test_a_token_goes_to_the_centroid_at_the_least_distance() -> None:
    rng = np.random.default_rng(4)
    tokens, centroids = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((7, 8)).astype(np.float32)
    distances = np.square(tokens[:, None] - centroids[None]).sum(axis=2)
    np.testing.assert_array_equal(assign(tokens, centroids), distances.argmin(axis=1))
