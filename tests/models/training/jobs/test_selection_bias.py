"""Correction of pooling bias: the optimum of each weighting, the separation of both models, and the job."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_training import Recipes
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.training.jobs.cross_encoder import CrossEncoderStudent
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.jobs.selection_bias import Calibration, CetConfig, PoolSelection, Scored, corrected, cosine
from chamfer.models.training.losses import ranking, selection
from chamfer.settings import load_recipe

RELEASED = CetConfig(
    selection_model="released", temperature=2.0, normalise_weights=False, max_weight=0.0, warmup_ratio=0.0
)
LOGGED = CetConfig(selection_model="logged", features={"bm25": 10.0}, warmup_ratio=0.0)


def scored(ranker: Tensor, selector: Tensor) -> Scored:
    return Scored(ranker, selector, ranker.detach(), selector.detach())


def parts_of(
    ranker: Tensor, selector: Tensor, config: CetConfig, *, warm: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    labels = torch.zeros_like(ranker)
    labels[:, 0] = 1
    return corrected(scored(ranker, selector), labels, labels, Calibration(), config, warm)


def test_both_losses_of_the_released_form_on_one_pair_by_hand() -> None:
    parts, notes = parts_of(torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, -0.4]]), RELEASED)
    assert notes["mean_weight"] == pytest.approx(1 + math.exp(-0.4 / 2))
    assert parts["pairwise"].item() == pytest.approx((1 + math.exp(-0.2)) * math.log1p(math.exp(-0.5)), rel=1e-5)
    assert parts["selection"].item() == pytest.approx((1 + math.exp(0.25)) * math.log1p(math.exp(-0.6)), rel=1e-5)


def test_gradients_are_those_of_finite_differences_with_the_weights_held() -> None:
    others = Scored(*(torch.randn((2, 3), dtype=torch.float64) for _ in range(4)))
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    for config in (RELEASED, LOGGED, replace(LOGGED, weighting="exact", max_weight=5.0)):

        def loss(ranker: Tensor, selector: Tensor, config: CetConfig = config) -> Tensor:
            given = replace(others, ranker=ranker, selector=selector)
            parts, _ = corrected(given, labels, labels, Calibration().double(), config, False)
            return parts["pairwise"] + parts["selection"]

        at = tuple(torch.randn((2, 3), dtype=torch.float64, requires_grad=True) for _ in range(2))
        assert torch.autograd.gradcheck(loss, at)


@pytest.mark.parametrize("config", [RELEASED, LOGGED, replace(LOGGED, weighting="exact")])
def test_neither_model_learns_from_the_loss_of_the_other(config: CetConfig) -> None:
    ranker, selector = (torch.randn((2, 3), requires_grad=True) for _ in range(2))
    parts, _ = parts_of(ranker, selector, config)
    assert torch.autograd.grad(parts["pairwise"], selector, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(parts["selection"], ranker, allow_unused=True) == (None,)


def test_warming_up_is_the_unweighted_loss_and_a_constant_arm_multiplies_it() -> None:
    ranker, selector = torch.randn((2, 3)), torch.randn((2, 3))
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    plain = ranking.pairwise(ranker, labels)
    warm, _ = parts_of(ranker, selector, RELEASED, warm=True)
    torch.testing.assert_close(warm["pairwise"], plain)
    constant, notes = parts_of(ranker, selector, replace(RELEASED, arm="constant"))
    torch.testing.assert_close(constant["pairwise"], notes["mean_weight"] * plain)


def test_shuffled_weights_are_the_same_weights_and_normalised_ones_have_mean_one() -> None:
    torch.manual_seed(1)
    flat = torch.zeros((1, 40))
    selector = torch.randn((1, 40))
    for arm in ("weighted", "shuffled"):  # all pairs alike: the loss sees the sum of the weights alone
        parts, notes = parts_of(flat, selector, replace(RELEASED, arm=arm))  # type: ignore[arg-type]
        assert parts["pairwise"].item() == pytest.approx(notes["mean_weight"] * math.log(2), rel=1e-5)
    ranker = torch.randn((1, 40))
    in_order, mixed = (
        parts_of(ranker, selector, replace(RELEASED, arm=arm))[0]["pairwise"]  # type: ignore[arg-type]
        for arm in ("weighted", "shuffled")
    )
    assert in_order.item() != pytest.approx(mixed.item(), rel=1e-4)
    _, notes = parts_of(ranker, selector, replace(RELEASED, normalise_weights=True))
    assert notes["mean_weight"] == pytest.approx(1)


def test_clipping_bounds_a_weight_before_the_mean_is_taken_out() -> None:
    selector = torch.tensor([[0.0, 50.0, -50.0]])
    _, notes = parts_of(torch.zeros((1, 3)), selector, replace(RELEASED, max_weight=9.0))
    assert notes["mean_weight"] == pytest.approx((9 + 1) / 2)


def test_the_cosine_of_equal_models_is_one_of_opposites_minus_one_and_of_a_shifted_model_one() -> None:
    scores = torch.randn((3, 4))
    assert cosine(scores, 2 * scores + torch.tensor([[1.0], [5.0], [-2.0]])) == pytest.approx(1)
    assert cosine(scores, -scores) == pytest.approx(-1)


def minimiser(positive: Tensor, negative: Tensor) -> Tensor:
    """A tabular scorer that minimises sum_ij positive_i negative_j softplus(f_j - f_i), f64 [n], mean 0."""
    f = torch.zeros_like(positive, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [f], lr=1, max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (positive[:, None] * negative[None] * torch.nn.functional.softplus(f[None] - f[:, None])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (f - f.mean()).detach()


def test_a_tabular_scorer_reaches_the_optimum_of_every_weighting() -> None:
    rng = torch.Generator().manual_seed(3)
    relevant, selected = (0.05 + 0.85 * torch.rand(40, generator=rng, dtype=torch.float64) for _ in range(2))
    both = relevant * selected
    positive, negative = both / both.sum(), (1 - both) / (1 - both).sum()
    up, down = selection.exact_weights(selected, relevant, min_selected=0.01)
    wanted = {
        "none": ((1, 1), (both / (1 - both)).log()),
        "negatives": ((1, 1 / (1 - selected)), (both * (1 - selected) / (1 - both)).log()),
        "exact": ((up, down), (relevant / (1 - relevant)).log()),
    }
    for name, ((a, b), optimum) in wanted.items():
        fitted = minimiser(a * positive, b * negative)
        torch.testing.assert_close(fitted, optimum - optimum.mean(), atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
def test_the_symmetric_fixed_point_of_the_released_form_keeps_the_order_without_weights(temperature: float) -> None:
    unweighted = torch.linspace(-6, 6, 50, dtype=torch.float64)
    f = unweighted.clone()
    for _ in range(200):  # Newton on f + log(1 + exp(f / T)) = L
        value = f + torch.nn.functional.softplus(f / temperature) - unweighted
        f = f - value / (1 + torch.sigmoid(f / temperature) / temperature)
    torch.testing.assert_close(f + torch.nn.functional.softplus(f / temperature), unweighted)
    assert (torch.diff(f) > 0).all()


def test_if_selection_does_not_depend_on_the_document_every_weighting_ranks_by_relevance() -> None:
    rng = torch.Generator().manual_seed(4)
    relevant = 0.05 + 0.9 * torch.rand(20, generator=rng, dtype=torch.float64)
    selected = torch.full_like(relevant, 0.3)
    both = relevant * selected
    up, down = selection.exact_weights(selected, relevant)
    for a, b in ((1, 1), (1, 1 / (1 - selected)), (up, down)):
        fitted = minimiser(a * both, b * (1 - both))
        assert torch.equal(torch.argsort(fitted), torch.argsort(relevant))


def test_selection_fitted_to_the_log_recovers_its_probabilities() -> None:
    rng = torch.Generator().manual_seed(5)
    features = 10 * torch.randn((4000, 1), generator=rng)
    true = torch.sigmoid(0.2 * features[:, 0] - 1)
    seen = (torch.rand(4000, generator=rng) < true).float()
    model = PoolSelection([10.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(features), seen).backward()
        optimizer.step()
    assert (torch.sigmoid(model(features)) - true).abs().mean() < 0.02


def test_an_inconsistent_recipe_is_refused_with_its_key() -> None:
    with pytest.raises(InvalidInput, match=r"'pool' needs cet\.features"):
        CetConfig(selection_model="pool")
    with pytest.raises(InvalidInput, match=r"exact needs probabilities"):
        CetConfig(selection_model="pool", features={"bm25": 1.0}, weighting="exact")


def test_cet_without_the_pairwise_loss_is_refused(recipe_of: Recipes) -> None:
    with pytest.raises(InvalidInput, match="found loss = 'listwise'"):
        load_recipe(recipe_of("cross_encoder", tables={"cet": {"selection_model": "released"}}))


def test_the_job_logs_cosine_and_mean_weight_and_saves_the_ranker_alone(recipe_of: Recipes, tmp_path: Path) -> None:
    tables = {"adapter": {"rank": 4}, "cet": {"selection_model": "released", "temperature": 2.0, "warmup_ratio": 0.0}}
    recipe = load_recipe(recipe_of("cross_encoder", loss="pairwise", tables=tables))
    fitted = run(recipe, tmp_path / "work")
    assert {"part_pairwise", "part_selection", "note_cosine", "note_mean_weight"} <= fitted.curve[-1].keys()
    plain = load_recipe(recipe_of("cross_encoder", "plain", loss="pairwise", tables={"adapter": {"rank": 4}}))
    run(plain, tmp_path / "plain.work")
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (recipe.out, plain.out)]
    assert sizes[0] == sizes[1]


def test_the_released_twin_starts_from_a_separate_head(recipe_of: Recipes) -> None:
    recipe = load_recipe(recipe_of("cross_encoder", loss="pairwise", tables={"cet": {"selection_model": "released"}}))
    student = CrossEncoderStudent(recipe)  # type: ignore[arg-type]
    twin = student.selection
    assert twin is not None
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in student.pairs.parameters()}
    assert not torch.equal(twin.head.inner.weight, student.head.inner.weight)
