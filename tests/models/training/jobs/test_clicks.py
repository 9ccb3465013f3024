"""Learning from clicks: the losses by hand and in expectation, and the logs from which they are read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support_training import Recipes
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Group
from chamfer.models.training.data.impressions import as_impression
from chamfer.models.training.jobs.clicks import ClicksStudent
from chamfer.models.training.losses import clicks
from chamfer.settings import load_recipe

ONE = torch.tensor(1.0, dtype=torch.float64)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_propensity_loss_of_two_documents_by_hand() -> None:
    values = clicks.inverse_propensity(
        torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.2]), 0.0
    )
    a, b = logistic(1.0), logistic(-2.0)
    assert values.tolist() == pytest.approx([2 * (1 - a) ** 2 - a**2, b**2], rel=1e-5)


def test_the_noise_loss_of_two_documents_by_hand() -> None:
    values = clicks.noisy_labels(torch.tensor([0.4, 0.4]), torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 0.0]))
    r, g = logistic(0.4), logistic(-1.0)
    assert values.tolist() == pytest.approx([-math.log(r * (1 - g)), -math.log(1 - r + g * r)], rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    clicked = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    scores, noise = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    propensity = torch.tensor([0.9, 0.5, 0.02, 0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clicks.inverse_propensity(x, clicked, propensity, 0.05), (scores,))
    assert torch.autograd.gradcheck(lambda x, g: clicks.noisy_labels(x, g, clicked), (scores, noise))


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_propensity_loss_is_unbiased_unclipped_and_off_by_the_stated_bias_clipped(least: float) -> None:
    theta, gamma, score = 0.1, 0.6, 0.7
    p = theta * gamma
    of_click, of_none = (float(clicks.inverse_propensity(score * ONE, y * ONE, theta * ONE, least)) for y in (1.0, 0.0))
    s = logistic(score)
    ideal = gamma * (1 - s) ** 2 + (1 - gamma) * s**2
    bias = gamma * (theta / max(theta, least) - 1) * ((1 - s) ** 2 - s**2)
    assert p * of_click + (1 - p) * of_none == pytest.approx(ideal + bias, rel=1e-9)


def test_mean_and_variance_over_simulated_clicks_are_those_of_the_formula() -> None:
    rng = torch.Generator().manual_seed(1)
    theta, gamma, score, n = 0.2, 0.5, 0.3, 400_000
    clicked = (torch.rand(n, generator=rng) < theta * gamma).double()
    values = clicks.inverse_propensity(score * ONE, clicked, theta * ONE, 0.0)
    s = logistic(score)
    d1, d0 = (1 - s) ** 2, s**2
    assert values.mean().item() == pytest.approx(gamma * d1 + (1 - gamma) * d0, abs=0.002)
    assert values.var().item() == pytest.approx(gamma * (1 / theta - gamma) * (d1 - d0) ** 2, rel=0.02)


def test_the_tabular_minimiser_is_the_relevance_and_a_propensity_of_one_is_the_naive_loss() -> None:
    theta, gamma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), torch.tensor([0.3, 0.6, 0.8])
    score = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([score], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        y, n = (clicks.inverse_propensity(score, value * torch.ones(3), theta, 0.0) for value in (1.0, 0.0))
        loss = (theta * gamma * y + (1 - theta * gamma) * n).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.sigmoid(score).detach(), gamma.double(), atol=1e-3, rtol=0)
    x, y = torch.randn(5), torch.tensor([1.0, 0, 1, 0, 0])
    torch.testing.assert_close(
        clicks.inverse_propensity(x, y, torch.ones(5), 0.0), (y - torch.sigmoid(x)) ** 2, atol=1e-6, rtol=1e-5
    )


def test_exact_noise_gradients_are_the_published_ones() -> None:
    scores, noise = torch.tensor([0.5, 0.5], requires_grad=True), torch.tensor([-1.5, -1.5], requires_grad=True)
    clicks.noisy_labels(scores, noise, torch.tensor([1.0, 0.0])).sum().backward()
    r, g = logistic(0.5), logistic(-1.5)
    p = 1 - r + g * r
    assert scores.grad is not None
    assert noise.grad is not None
    assert (-scores.grad).tolist() == pytest.approx([1 - r, -(1 - g) * r * (1 - r) / p], rel=1e-5)
    assert (-noise.grad).tolist() == pytest.approx([-g, g * (1 - g) * r / p], rel=1e-5)


def test_an_unclicked_document_converges_to_the_logarithm_of_its_noise_probability() -> None:
    for g in (-3.0, 0.0, 2.0):
        score = torch.tensor(1.0, requires_grad=True)
        for _ in range(3000):
            loss = clicks.noisy_labels_surrogate(score, torch.tensor(g), torch.tensor(0.0))
            (gradient,) = torch.autograd.grad(loss, score)
            score = (score - 0.5 * gradient).detach().requires_grad_()
        assert score.item() == pytest.approx(math.log(logistic(g)), abs=1e-3)


def test_without_noise_both_forms_have_the_plain_logistic_gradients() -> None:
    clicked = torch.tensor([1.0, 0.0])
    for loss in (clicks.noisy_labels, clicks.noisy_labels_surrogate):
        scores = torch.tensor([0.3, -0.8], requires_grad=True)
        loss(scores, torch.full((2,), -40.0), clicked).sum().backward()
        torch.testing.assert_close(scores.grad, torch.sigmoid(scores).detach() - clicked)


def test_an_impression_has_the_shown_documents_in_the_order_shown() -> None:
    group = Group(
        query_id="q",
        query="?",
        doc_ids=["b", "gone", "a"],
        labels=[1.0, 0.0, 0.0],
        teachers={"rank": [2, 3, 1], "shown": [1, 0, 1], "propensity": [math.nan, 0.1, 0.8], "bm25": [1, 2, 3]},
    )
    impression = as_impression(group, eta=0.5)
    assert list(impression.doc_ids) == ["a", "b"]
    assert list(impression.labels) == [0.0, 1.0]
    np.testing.assert_allclose(impression.teachers["propensity"], [0.8, 2**-0.5])
    assert impression.teachers.keys() == {"rank", "propensity"}


def test_groups_that_are_not_impressions_are_refused() -> None:
    bare = Group(query_id="q", query="?", doc_ids=["a"], labels=[1.0])
    with pytest.raises(InvalidInput, match=r"'q' has no column 'rank'; chamfer selections"):
        as_impression(bare, 1.0)
    with pytest.raises(InvalidInput, match=r"expected numbers in \(0, 1\]"):
        as_impression(Group("q", "?", ["a"], [1.0], teachers={"rank": [1], "propensity": [1.5]}), 1.0)


def test_propensity_sees_whole_impressions_and_noise_draws_some_for_each_click(recipe_of: Recipes) -> None:
    group = Group(query_id="q", query="?", doc_ids=[str(i) for i in range(9)], labels=[0, 0, 1.0, 0, 0, 0, 0, 0, 0])
    rng = np.random.default_rng(0)
    for click_loss, expected in (("propensity", 9), ("noise", 1 + 3)):
        recipe = load_recipe(recipe_of("clicks", click_loss=click_loss))
        student = ClicksStudent(recipe)  # type: ignore[arg-type]
        indices = student.sample(group, recipe.data, rng)
        assert len(set(indices)) == expected
        assert 2 in indices
