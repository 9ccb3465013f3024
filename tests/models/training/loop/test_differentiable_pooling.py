"""CRISP inside the forward pass: the vectors of chamfer.models.networks.token_pooling, with the gradient of a mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chamfer.models.networks.maxsim import maxsim
from chamfer.models.networks.token_pooling import Pooling, parse_pooling, pool_one
from chamfer.models.training.loop.differentiable_pooling import pool_batch

NAMES = ["c4x8", "c2x3", "c25", "c50", "k2", "k4", "tail2x4", "c0x5"]
LENGTHS = [7, 1, 12, 4]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    vectors = torch.randn((4, 12, 6), generator=rng)
    mask = torch.zeros((4, 12), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return vectors, mask


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_gives_the_vectors_of_indexing_whatever_the_padding(
    name: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    rule = parse_pooling(name).document
    pooled, real = pool_batch(*batch, rule)
    for row, length in enumerate(LENGTHS):
        expected = pool_one(np.ascontiguousarray(batch[0][row, :length].numpy()), rule)
        assert int(real[row].sum()) == len(expected)
        np.testing.assert_allclose(pooled[row, : len(expected)].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["c4x8", "w0x5", "c0x5n", "k2"])
def test_tokens_with_weights_are_pooled_as_in_indexing(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rules = parse_pooling(name)
    weights = torch.rand((4, 12), generator=torch.Generator().manual_seed(3)) + 0.01
    pooled, _ = pool_batch(*batch, rules.document, normalised=rules.normalised, weights=weights)
    for row, length in enumerate(LENGTHS):
        tokens, token_weights = batch[0][row, :length].numpy(), weights[row, :length].numpy()
        expected = pool_one(
            np.ascontiguousarray(tokens), rules.document, normalised=rules.normalised, weights=token_weights
        )
        np.testing.assert_allclose(pooled[row, : len(expected)].numpy(), expected, atol=1e-6)


def test_weights_get_a_gradient_through_the_means() -> None:
    rng = torch.Generator().manual_seed(6)
    centres = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.float64)
    vectors = (centres[[0, 0, 1, 1, 1]] + 0.1 * torch.randn((5, 3), generator=rng, dtype=torch.float64))[None]
    weights = (0.5 + torch.rand((1, 5), generator=rng, dtype=torch.float64)).requires_grad_()

    def means(given: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(1, 5, dtype=torch.long)
        return pool_batch(vectors, mask, Pooling("cluster", 2), normalised=True, weights=given)[0]

    assert torch.autograd.gradcheck(means, (weights,), eps=1e-6)


def test_the_gradient_of_a_mean_is_one_over_the_size_of_its_cluster_and_zero_outside() -> None:
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    vectors = torch.stack([near, near + 0.01, near - 0.01, far, torch.zeros(2)])[None].requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    pooled, real = pool_batch(vectors, mask, Pooling("cluster", 2))
    assert real.tolist() == [[True, True]]
    cluster = int((pooled[0, :, 0] > 0.5).nonzero()[0])
    pooled[0, cluster, 0].backward()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad[0, :, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]))
    assert vectors.grad[0, :, 1].abs().max() == 0


def test_the_gradient_equals_finite_differences_while_assignments_stay() -> None:
    rng = torch.Generator().manual_seed(5)
    centres = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.float64)
    vectors = (centres[[0, 0, 1, 1, 1]] + 0.1 * torch.randn((5, 3), generator=rng, dtype=torch.float64))[None]
    query = torch.randn((1, 2, 3), generator=rng, dtype=torch.float64)

    def score(given: torch.Tensor) -> torch.Tensor:
        pooled, real = pool_batch(given, torch.ones(1, 5, dtype=torch.long), Pooling("cluster", 2))
        return maxsim(query, torch.ones(1, 2, dtype=torch.bool), pooled, real)

    assert torch.autograd.gradcheck(score, (vectors.requires_grad_(),), eps=1e-6)


def test_masked_slots_never_win_a_maximum() -> None:
    vectors = -torch.eye(3)[None]  # every similarity to the query is negative or zero
    mask = torch.tensor([[1, 0, 0]])
    pooled, real = pool_batch(vectors, mask, Pooling("cluster", 2))
    query = torch.tensor([[[1.0, 0.0, 0.0]]])
    assert maxsim(query, torch.ones(1, 1, dtype=torch.bool), pooled, real).item() == -1.0


def test_as_many_clusters_as_tokens_leave_maxsim_unchanged(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    vectors, mask = batch
    query, every = vectors[:1, :5], torch.ones(1, 5, dtype=torch.bool)
    pooled, real = pool_batch(vectors, mask, Pooling("cluster", 12))
    torch.testing.assert_close(maxsim(query, every, pooled, real), maxsim(query, every, vectors, mask > 0))
