"""LEMUR against its definition: the feature map, the closed form of the output layer, training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from chamfer.indexing.kernels.lemur import (
    DocumentFit,
    FeatureMap,
    Fit,
    encode_queries,
    inverse_of,
    largest_products,
    train_features,
)

DRAW = np.random.default_rng(3)


def unit(n: int, d: int = 12) -> np.ndarray:
    values = DRAW.standard_normal((n, d)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def some_map(d: int = 12, h: int = 30) -> FeatureMap:
    return FeatureMap(*(DRAW.standard_normal(s).astype(np.float32) for s in ((d, h), h, h, h)))


def documents(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    return unit(sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def fitted(n: int = 200, h: int = 30) -> Fit:
    features, tokens = some_map(h=h), unit(n)
    return Fit(features, tokens, inverse_of(torch.from_numpy(features(tokens))), 0.3, 0.2)


def test_the_feature_map_is_torchs_linear_layer_norm_and_gelu() -> None:
    features, tokens = some_map(), unit(50)
    weight, bias, gain, shift = map(torch.from_numpy, (features.weight, features.bias, features.gain, features.shift))
    normed = functional.layer_norm(torch.from_numpy(tokens) @ weight + bias, (30,), gain, shift)
    np.testing.assert_allclose(features(tokens), functional.gelu(normed).numpy(), atol=2e-6)


def test_a_query_is_the_sum_of_its_features_by_32_and_an_empty_one_is_zero() -> None:
    features, tokens = some_map(), unit(9)
    encoded = encode_queries(tokens, np.array([0, 4, 4, 9]), features)
    np.testing.assert_allclose(encoded[0] * 32, features(tokens[:4]).sum(axis=0), rtol=1e-5, atol=1e-5)
    assert not encoded[1].any()
    np.testing.assert_array_equal(encoded[2], encode_queries(tokens[4:], np.array([0, 5]), features)[0])


def test_targets_are_the_largest_inner_products() -> None:
    values, offsets = documents(3, 0, 5)
    tokens = unit(7)
    products = largest_products(torch.from_numpy(tokens), torch.from_numpy(values), offsets, np.array([2, 1, 0]))
    expected = np.stack([(tokens @ values[3:8].T).max(1), np.zeros(7), (tokens @ values[:3].T).max(1)], axis=1)
    np.testing.assert_allclose(products.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "h"), [(300, 16), (12, 16)])
def test_a_documents_vector_is_the_least_squares_fit_of_its_maxima(n: int, h: int) -> None:
    fit = fitted(n, h)
    values, offsets = documents(4, 1, 0, 9)
    vectors = DocumentFit(fit, "cpu")(values, offsets)
    psi = fit.features(fit.tokens).astype(np.float64)
    cut = np.finfo(np.float32).eps * max(psi.shape)
    for row, (start, stop) in enumerate(pairwise(offsets)):
        maxima = (fit.tokens @ values[start:stop].T).max(axis=1) if stop > start else np.zeros(n)
        expected = np.linalg.pinv(psi, rcond=cut) @ ((maxima - 0.3) / 0.2)
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_singular_values_below_the_cut_off_count_as_nothing() -> None:
    psi = unit(40, 6).astype(np.float64)
    psi = np.concatenate([psi, psi[:, :2] + 1e-9], axis=1).astype(np.float32)  # two columns twice
    factor = inverse_of(torch.from_numpy(psi))
    assert factor.shape == (8, 6)
    cut = np.finfo(np.float32).eps * 40
    np.testing.assert_allclose(factor @ factor.T @ psi.T, np.linalg.pinv(psi.astype(np.float64), rcond=cut), atol=1e-5)


def test_a_documents_bits_do_not_depend_on_the_other_documents() -> None:
    fit = DocumentFit(fitted(300, 64), "cpu")
    lengths = [5, 2, 0, 7, 3, 1, 11, 4, 6, 2, 2, 9, 3, 8, 1, 5, 2, 4, 6]
    values, offsets = documents(*lengths)
    together = fit(values, offsets)
    for row in range(len(lengths)):
        document = values[offsets[row] : offsets[row + 1]]
        np.testing.assert_array_equal(together[row], fit(document, np.array([0, len(document)]))[0])


def test_training_lowers_the_error_and_the_same_seed_gives_the_same_bits() -> None:
    tokens, (values, offsets) = torch.from_numpy(unit(600)), documents(*[6] * 20)
    targets = largest_products(tokens, torch.from_numpy(values), offsets, np.arange(20))
    targets = (targets - targets.mean()) / targets.std()
    first = list(train_features(tokens, targets, 64, 8, seed=5))
    again = list(train_features(tokens, targets, 64, 8, seed=5))
    other = next(iter(train_features(tokens, targets, 64, 8, seed=6)))
    losses = [loss for _, loss in first[1:]]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_array_equal(first[-1][0].weight, again[-1][0].weight)
    assert not np.array_equal(first[0][0].weight, other[0].weight)


@pytest.mark.gpu
def test_the_gpu_fits_documents_as_the_cpu_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    fit = fitted(500, 64)
    values, offsets = documents(5, 0, 30, 2)
    cpu, gpu = (DocumentFit(fit, device)(values, offsets) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-2, atol=1e-2 * np.abs(cpu).max())
