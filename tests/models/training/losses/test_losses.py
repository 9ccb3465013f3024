"""Every loss by hand, against finite differences, and by the properties stated in its paper."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chamfer.models.training.losses import contrastive, distillation, ranking, selection, sparsity

Loss = Callable[[Tensor], Tensor]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def check_gradient(loss: Loss, at: Tensor) -> None:
    assert torch.autograd.gradcheck(loss, (at.double().requires_grad_(),), eps=1e-6, atol=1e-5)


# By hand, on two candidates with scores 2 and 1 (the first relevant): p = sigmoid(1).
TWO = torch.tensor([[2.0, 1.0]])
FIRST = torch.tensor([0])
LABELS = torch.tensor([[1.0, 0.0]])


def test_infonce_of_two_documents_is_the_logistic_loss_of_their_difference() -> None:
    assert contrastive.infonce(TWO, FIRST).item() == pytest.approx(-math.log(logistic(1)), abs=1e-6)


def test_focal_infonce_multiplies_by_the_missing_probability_to_gamma() -> None:
    p = logistic(1)
    assert contrastive.infonce(TWO, FIRST, gamma=0.5).item() == pytest.approx(-((1 - p) ** 0.5) * math.log(p), abs=1e-6)


def test_pairwise_and_listwise_of_one_positive_and_one_negative_are_the_same_logistic_loss() -> None:
    expected = -math.log(logistic(1))
    assert ranking.pairwise(TWO, LABELS).item() == pytest.approx(expected, abs=1e-6)
    assert ranking.listwise(TWO, LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_pointwise_is_the_mean_of_both_binary_cross_entropies() -> None:
    expected = -(math.log(logistic(2)) + math.log(1 - logistic(1))) / 2
    assert ranking.pointwise(TWO, LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_kl_of_two_candidates_is_that_of_their_probabilities() -> None:
    teacher = torch.tensor([[0.0, 0.0]])
    p = logistic(1)
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert distillation.kl(TWO, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_margin_mse_is_the_squared_difference_of_margins() -> None:
    assert distillation.margin_mse(TWO, torch.tensor([[5.0, 1.0]])).item() == pytest.approx((1 - 4) ** 2)


def test_flops_of_two_documents_sums_squared_means() -> None:
    assert sparsity.flops(torch.tensor([[1.0, 0.0], [3.0, 2.0]])).item() == pytest.approx(2.0**2 + 1.0**2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: contrastive.infonce(s, torch.tensor([0, 2])),
        lambda s: contrastive.infonce(s, torch.tensor([0, 2]), torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()),
        lambda s: ranking.pointwise(s, torch.tensor([[1.0, 0, 0, 0.5], [0, 0, 1, 0]]).to(s)),
        lambda s: ranking.pairwise(s, torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, 0]]).to(s)),
        lambda s: ranking.listwise(s, torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]]).to(s)),
        lambda s: ranking.listwise(s, torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]]).to(s), torch.full_like(s, 3)),
        lambda s: distillation.kl(s, torch.tensor([[1.0, 0, 2, 1], [0, 3, 1, 0]]).to(s)),
        lambda s: distillation.half_jeffreys(s, torch.tensor([[1.0, 0, 2, 1], [0, 3, 1, 0]]).to(s)),
        lambda s: distillation.jensen_shannon(s, torch.tensor([[1.0, 0, 2, 1], [0, 3, 1, 0]]).to(s)),
        lambda s: distillation.margin_mse(s, torch.tensor([[1.0, 0, 2, 1], [0, 3, 1, 0]]).to(s)),
        lambda s: sparsity.flops(s.abs()),
        lambda s: sparsity.grouped_flops(s.abs().view(2, 2, 2)),
        lambda s: sparsity.double_log(s).sum(),
    ],
)
def test_gradients_equal_finite_differences(loss: Loss, rng: torch.Generator) -> None:
    check_gradient(loss, torch.randn((2, 4), generator=rng))


def test_matryoshka_gradient_equals_finite_differences(rng: torch.Generator) -> None:
    documents = torch.randn((3, 6), generator=rng).double()
    positives = torch.tensor([0, 2])

    def loss(queries: Tensor) -> Tensor:
        return contrastive.matryoshka(
            queries, documents, (6, 3), (1.0, 0.5), lambda q, d: contrastive.infonce(q @ d.T, positives)
        )

    check_gradient(loss, torch.randn((2, 6), generator=rng))


def test_matryoshka_with_the_whole_vector_alone_is_the_plain_loss_of_unit_vectors(rng: torch.Generator) -> None:
    queries, documents = torch.randn((2, 6), generator=rng), torch.randn((4, 6), generator=rng)
    positives = torch.tensor([1, 3])

    def plain(q: Tensor, d: Tensor) -> Tensor:
        torch.testing.assert_close(q.norm(dim=1), torch.ones(2))
        return contrastive.infonce(q @ d.T, positives)

    whole = contrastive.matryoshka(queries, documents, (6,), (1.0,), plain)
    torch.testing.assert_close(whole, plain(contrastive.unit(queries), contrastive.unit(documents)))


def test_focal_weight_is_finite_and_zero_where_the_positive_has_all_the_probability() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        scores = torch.tensor([[500.0, 0.0], [1.0, 1.0]], dtype=dtype, requires_grad=True)
        contrastive.infonce(scores, torch.tensor([0, 0]), gamma=0.5).backward()
        weights = contrastive.focal_weights(scores, torch.tensor([[True, False], [True, False]]), 0.5)
        assert scores.grad is not None
        assert torch.isfinite(scores.grad).all()
        assert weights[0] == 0
        assert weights[1].item() == pytest.approx(0.5**0.5, abs=0.01)


def test_focal_gradient_of_the_positive_is_that_of_a_detached_weight() -> None:
    scores = torch.tensor([[1.3, 0.2, -0.4]], dtype=torch.float64, requires_grad=True)
    contrastive.infonce(scores, FIRST, gamma=0.5).backward()
    p = torch.softmax(scores.detach(), dim=1)[0, 0].item()
    assert scores.grad is not None
    assert scores.grad[0, 0].item() == pytest.approx(-((1 - p) ** 1.5), abs=1e-9)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.floats(0.1, 3))
@settings(deadline=None, max_examples=40)
def test_focal_weights_lie_in_the_unit_interval_and_fall_as_the_positive_rises(
    scores: list[float], gamma: float
) -> None:
    row = torch.tensor([scores], dtype=torch.float64)
    positive = torch.zeros_like(row, dtype=torch.bool)
    positive[0, 0] = True
    low = contrastive.focal_weights(row, positive, gamma).item()
    row[0, 0] += 1
    high = contrastive.focal_weights(row, positive, gamma).item()
    assert 0 <= high <= low <= 1


def test_more_documents_never_lower_infonce_and_masked_ones_change_nothing(rng: torch.Generator) -> None:
    scores = torch.randn((3, 5), generator=rng)
    positives = torch.tensor([0, 1, 2])
    assert contrastive.infonce(scores, positives) >= contrastive.infonce(scores[:, :4], positives)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    allowed[:, 4] = False
    torch.testing.assert_close(
        contrastive.infonce(scores, positives, allowed), contrastive.infonce(scores[:, :4], positives)
    )


def test_a_relevant_document_is_not_a_negative() -> None:
    mask = contrastive.not_relevant(["a", "b", "a"], [{"a"}, {"b", "c"}])
    assert mask.tolist() == [[False, True, False], [True, False, True]]


def test_pair_mixes_are_unit_parents_at_one_and_swap_with_their_shares(rng: torch.Generator) -> None:
    negatives = contrastive.unit(torch.randn((2, 3, 8), generator=rng, dtype=torch.float64))
    first, second = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1, 2], [0, 1]])
    shares = torch.rand((2, 2), generator=rng, dtype=torch.float64)
    mixes = contrastive.mix_pairs(negatives, first, second, shares)
    torch.testing.assert_close(mixes.norm(dim=2), torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(mixes, contrastive.mix_pairs(negatives, second, first, 1 - shares))
    parent = contrastive.mix_pairs(negatives, first, second, torch.ones_like(shares))
    torch.testing.assert_close(parent[0, 1], negatives[0, 1])


def test_a_mix_of_two_equally_similar_negatives_is_harder_than_both_by_the_stated_factor(rng: torch.Generator) -> None:
    a, b = contrastive.unit(torch.randn((2, 8), generator=rng, dtype=torch.float64))
    query = contrastive.unit(a + b)  # equally near to both
    share = torch.tensor([[0.3]], dtype=torch.float64)
    mix = contrastive.mix_pairs(torch.stack([a, b])[None], torch.tensor([[0]]), torch.tensor([[1]]), share)[0, 0]
    factor = 1 / math.sqrt(1 - 2 * 0.3 * 0.7 * (1 - float(a @ b)))
    assert float(query @ mix) == pytest.approx(float(query @ a) * factor, abs=1e-9)
    assert factor > 1


def test_list_mixes_are_unit_and_carry_no_gradient(rng: torch.Generator) -> None:
    queries = contrastive.unit(torch.randn((2, 8), generator=rng)).requires_grad_()
    negatives = contrastive.unit(torch.randn((2, 3, 8), generator=rng)).requires_grad_()
    mix = contrastive.mix_list(queries, negatives, 0.1)
    torch.testing.assert_close(mix.norm(dim=2), torch.ones(2, 1))
    assert not mix.requires_grad


# Distillation


def test_symmetric_divergences_are_symmetric_and_zero_for_equal_distributions(rng: torch.Generator) -> None:
    p, q = torch.randn((2, 5), generator=rng), torch.randn((2, 5), generator=rng)
    for loss in (distillation.half_jeffreys, distillation.jensen_shannon):
        torch.testing.assert_close(loss(p, q), loss(q, p))
        assert loss(p, p + 3).item() == pytest.approx(0, abs=1e-6)
        assert loss(p, q) > 0


def test_kl_ignores_a_constant_per_query(rng: torch.Generator) -> None:
    p, q = torch.randn((2, 5), generator=rng), torch.randn((2, 5), generator=rng)
    torch.testing.assert_close(distillation.kl(p + 4, q - 2), distillation.kl(p, q))


def test_jensen_shannon_stays_below_ln_two_where_jeffreys_does_not() -> None:
    p, q = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    assert distillation.jensen_shannon(p, q).item() == pytest.approx(math.log(2), abs=1e-5)
    assert distillation.half_jeffreys(p, q).item() > 10


def test_gradient_of_half_jeffreys_is_the_published_one(rng: torch.Generator) -> None:
    student = torch.randn((1, 4), generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn((1, 4), generator=rng, dtype=torch.float64)
    distillation.half_jeffreys(student, teacher).backward()
    p, q = torch.softmax(student.detach(), 1), torch.softmax(teacher, 1)
    kl_pq = (p * (p / q).log()).sum()
    expected = 0.5 * ((p - q) + p * ((p / q).log() - kl_pq))
    torch.testing.assert_close(student.grad, expected)
    assert student.grad is not None
    assert student.grad.sum().item() == pytest.approx(0, abs=1e-12)


def test_ensemble_ignores_scale_and_shift_of_a_teacher_and_survives_equal_scores(rng: torch.Generator) -> None:
    teachers = torch.randn((2, 3, 5), generator=rng)
    mixed = distillation.ensemble(teachers, 30)
    moved = torch.stack([teachers[0] * 7 + 3, teachers[1]])
    torch.testing.assert_close(mixed, distillation.ensemble(moved, 30), atol=1e-3, rtol=1e-4)
    assert mixed.min() >= 0
    assert mixed.max() <= 30
    assert distillation.ensemble(torch.ones(1, 1, 4), 30).tolist() == [[0, 0, 0, 0]]


# Sparsity


def test_gradient_of_flops_is_twice_the_mean_over_n_and_zero_in_empty_columns() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0]], requires_grad=True)
    sparsity.flops(weights).backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]


def test_flops_is_homogeneous_of_degree_two(rng: torch.Generator) -> None:
    weights = torch.rand((4, 6), generator=rng)
    torch.testing.assert_close(sparsity.flops(3 * weights), 9 * sparsity.flops(weights))


def test_grouped_flops_is_at_least_slots_times_pooled_with_equality_for_equal_slots(rng: torch.Generator) -> None:
    slots = torch.rand((3, 4, 6), generator=rng)
    assert sparsity.grouped_flops(slots) >= 3 * sparsity.flops(slots.reshape(12, 6))
    same = slots[:1].expand(3, 4, 6)
    torch.testing.assert_close(sparsity.grouped_flops(same), 3 * sparsity.flops(same.reshape(12, 6)))


def test_masked_flops_ignores_short_documents_and_equals_flops_at_threshold_zero() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    sparsity.masked_flops(weights, 1).backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [0, 0, 0]
    assert weights.grad[1].abs().min() > 0
    torch.testing.assert_close(sparsity.masked_flops(weights, 0), sparsity.flops(weights))


def test_the_ramp_grows_quadratically_and_then_stays_constant() -> None:
    assert [sparsity.ramp(8.0, step, 4) for step in (0, 1, 3, 100)] == [0.5, 2.0, 8.0, 8.0]


@given(st.lists(st.floats(-5, 50, allow_subnormal=False), min_size=1, max_size=10))
@settings(deadline=None, max_examples=40)
def test_both_activations_share_the_support_and_the_order_of_relu(values: list[float]) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    for activate in (sparsity.single_log, sparsity.double_log):
        activated = activate(logits)
        assert ((activated > 0) == (logits > 0)).all()
        assert (torch.diff(activated[torch.argsort(logits)]) >= 0).all()


# Selection


def test_released_weight_is_one_plus_the_exponential_above_one_and_two_in_the_limit() -> None:
    scores = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
    for temperature in (2.0, 10.0):
        weights = selection.released_weights(scores, temperature)
        torch.testing.assert_close(weights, 1 / (1 - torch.sigmoid(scores / temperature)))
        assert (torch.diff(weights) > 0).all()
        assert weights.min() > 1
    torch.testing.assert_close(selection.released_weights(scores, 1e9), torch.full_like(scores, 2))
    assert (
        selection.released_weights(scores, 10)[2] / selection.released_weights(scores, 10)[0]
    ).item() == pytest.approx(1.5, abs=0.02)


def test_selection_weights_have_mean_one_and_are_clipped_before() -> None:
    selected = torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64)
    weights = selection.selection_weights(selected, 10)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[2] / weights[0]).item() == pytest.approx(10)


def test_no_weight_carries_a_gradient() -> None:
    scores = torch.tensor([0.3, 0.6], requires_grad=True)
    assert not selection.released_weights(scores, 2).requires_grad
    assert not selection.selection_weights(scores, 5).requires_grad
    assert not any(weight.requires_grad for weight in selection.exact_weights(scores, scores))


def test_a_constant_weight_multiplies_the_pairwise_gradient() -> None:
    plain, weighted = (torch.tensor([[0.3, 0.9, -1.0]], requires_grad=True) for _ in range(2))
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    ranking.pairwise(plain, labels).backward()
    ranking.pairwise(weighted, labels, torch.tensor([[1.0, 3.0, 3.0]])).backward()
    assert plain.grad is not None
    torch.testing.assert_close(weighted.grad, 3 * plain.grad)


@pytest.mark.parametrize("weighting", ["none", "ideal", "exact"])
def test_a_tabular_scorer_reaches_the_optimum_that_each_weighting_has(weighting: str) -> None:
    """The optimum f* = log(a p+) - log(b p-) for weights a, b; p+ ~ p_r p_s, p- ~ 1 - p_r p_s."""
    rng = torch.Generator().manual_seed(3)
    p_r, p_s = (0.1 + 0.8 * torch.rand(12, generator=rng, dtype=torch.float64) for _ in range(2))
    positive, negative = p_r * p_s, 1 - p_r * p_s
    a = b = torch.ones_like(p_r)
    if weighting == "ideal":
        b = 1 / (1 - p_s)
        expected = (p_r * p_s * (1 - p_s) / (1 - p_r * p_s)).log()
    elif weighting == "exact":
        a, b = selection.exact_weights(p_s, p_r, min_selected=0.0)
        expected = (p_r / (1 - p_r)).log()
    else:
        expected = (p_r * p_s / (1 - p_r * p_s)).log()
    scores = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [scores], lr=1, max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    mass = (a * positive)[:, None] * (b * negative)[None, :]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (mass * torch.nn.functional.softplus(scores[None, :] - scores[:, None])).sum() / mass.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    reached = scores.detach() - scores.detach().mean()
    torch.testing.assert_close(reached, expected - expected.mean(), atol=1e-4, rtol=0)


@given(st.floats(0.5, 20), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_the_released_fixed_point_has_the_order_of_no_weighting(temperature: float, seed: int) -> None:
    """The fixed point f + log(1 + exp(f/T)) = L, solved by bisection, has the order of L."""
    target = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    low, high = torch.full_like(target, -60), torch.full_like(target, 60)
    for _ in range(80):
        middle = (low + high) / 2
        above = middle + selection.released_weights(middle, temperature).log() > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    assert torch.equal(torch.argsort(low), torch.argsort(target))
