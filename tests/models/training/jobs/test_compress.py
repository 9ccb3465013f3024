"""Job `compress`: the weighted SVD by hand and against plain SVD, and models that become smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support_training import Recipes

from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.low_rank import factor
from chamfer.models.registry import load_encoder, load_reranker
from chamfer.models.training.jobs.compress import CompressStudent
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.loop.fisher_svd import importances, rank_of, weighted_error, weighted_svd
from chamfer.settings import load_recipe

FP32 = DeviceConfig(precision="fp32", device="cpu")
ADAPTER = {"rank": 4, "alpha": 8}
WHOLE = {"keep_ratio": 2.0, "tables": {"fit": {"learning_rate": 0.0, "head_learning_rate": 0.0}}}


def test_the_weighted_svd_of_two_inputs_by_hand() -> None:
    """W = diag(3, 2): plain SVD of rank 1 keeps the 3; where the second input counts 9 times, 2 * 3 > 3 * 1 wins."""
    weight = torch.diag(torch.tensor([3.0, 2.0]))
    inner, outer = weighted_svd(weight, torch.tensor([1.0, 1.0]), 1)
    torch.testing.assert_close(outer @ inner, torch.diag(torch.tensor([3.0, 0.0])))
    inner, outer = weighted_svd(weight, torch.tensor([1.0, 9.0]), 1)
    torch.testing.assert_close(outer @ inner, torch.diag(torch.tensor([0.0, 2.0])))
    assert weighted_error(weight, torch.tensor([1.0, 9.0]), (inner, outer)) == pytest.approx(9.0)


def test_the_fisher_information_of_two_examples_by_hand() -> None:
    """Loss (w . x)^2 / 2 has the gradient (w . x) x: examples (1, 0) and (0, 2) at w = (1, 3) give (1, 0), (0, 12)."""
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 3.0]]))
    examples = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])]
    information = importances({"w": layer}, lambda x: layer(x).square().sum() / 2, examples)["w"]
    assert information.tolist() == pytest.approx([1 / 2, 144 / 2])
    assert layer.weight.grad is None


def test_equal_importances_give_plain_truncated_svd_and_a_constant_factor_changes_nothing() -> None:
    weight = torch.randn(7, 5)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    for rank in (1, 3):
        inner, outer = weighted_svd(weight, torch.full((5,), 0.3), rank)
        torch.testing.assert_close(
            outer @ inner, left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank], atol=1e-5, rtol=1e-5
        )
    importance = torch.rand(5) + 0.1
    one, other = (weighted_svd(weight, scale * importance, 2) for scale in (1.0, 1e-8))
    torch.testing.assert_close(one[1] @ one[0], other[1] @ other[0], atol=1e-5, rtol=1e-5)


def test_the_weighted_svd_has_a_smaller_weighted_error_and_a_larger_plain_one() -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(40, 30), torch.exp(2 * torch.randn(30))
    ones = torch.ones(30)
    weighted, plain = (weighted_svd(weight, wanted, 8) for wanted in (importance, ones))
    assert weighted_error(weight, importance, weighted) < 0.8 * weighted_error(weight, importance, plain)
    assert weighted_error(weight, ones, weighted) > weighted_error(weight, ones, plain)


@pytest.mark.parametrize("importance", [torch.rand(5), torch.zeros(5), torch.tensor([0.0, 0, 1, 0, 0])])
def test_full_rank_gives_the_weights_back_even_where_inputs_have_no_importance(importance: torch.Tensor) -> None:
    weight = torch.randn(7, 5)
    inner, outer = weighted_svd(weight, importance, rank_of(weight, 2.0))
    torch.testing.assert_close(outer @ inner, weight, atol=1e-4, rtol=1e-4)


def test_the_rank_keeps_the_configured_share_of_parameters() -> None:
    weight = torch.empty(768, 3072)
    assert rank_of(weight, 1.0) == 614  # the rank from which factors save nothing
    assert rank_of(torch.empty(768, 768), 1.0) == 384
    assert rank_of(weight, 0.0001) == 1
    assert rank_of(weight, 9.0) == 768
    rank = rank_of(weight, 0.5)
    assert 0.49 < rank * (768 + 3072) / weight.numel() <= 0.5


def test_factored_layers_equal_their_product_and_keep_the_bias() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 6)})
    bias = model["a"].bias
    pieces = factor(model, {"a": 2})["a"]
    x = torch.randn(3, 4)
    expected = x @ (pieces.outer.weight @ pieces.inner.weight).T + bias
    torch.testing.assert_close(model["a"](x), expected)
    with pytest.raises(Incompatible, match="not a linear layer"):
        factor(model, {"b": 2})


def trained(recipe_of: Recipes, job: str, tmp_path: Path) -> Path:
    recipe = load_recipe(recipe_of(job, "start", tables={"adapter": ADAPTER, "data": {"epochs": 4}}))
    run(recipe, tmp_path / "start.work")
    return recipe.out


def compressed(recipe_of: Recipes, tmp_path: Path, model: Path | None, **options: Any) -> Path:
    given = {} if model is None else {"model": str(model)}
    recipe = load_recipe(recipe_of("compress", "small", **given, **options))
    run(recipe, tmp_path / "small.work")
    return recipe.out


def test_a_cross_encoder_at_full_rank_scores_as_the_original(recipe_of: Recipes, tmp_path: Path) -> None:
    start = trained(recipe_of, "cross_encoder", tmp_path)
    small = compressed(recipe_of, tmp_path, start, **WHOLE)
    documents = [Document("0", "w1 w2 w3"), Document("1", ""), Document("2", "w9 w8 w7")]
    before, after = (
        load_reranker(str(folder), FP32).score(Query("q", "w2 w1"), documents) for folder in (start, small)
    )
    np.testing.assert_allclose(after, before, rtol=0.02, atol=0.02)  # both are kept in f16


def test_an_encoder_at_full_rank_gives_the_vectors_of_the_original(recipe_of: Recipes, tmp_path: Path) -> None:
    start = trained(recipe_of, "dense", tmp_path)
    small = compressed(recipe_of, tmp_path, start, **WHOLE)
    one, other = (
        load_encoder(f"trained:{folder}", FP32).encode_documents([Document("0", "w1 w2 w3")], [VectorKind.DENSE]).dense
        for folder in (start, small)
    )
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.values, other.values, atol=5e-3)


def test_a_compressed_model_is_smaller_stands_alone_and_is_a_backbone_of_other_jobs(
    recipe_of: Recipes, tmp_path: Path
) -> None:
    small = compressed(recipe_of, tmp_path, None, keep_ratio=0.5)
    facts = json.loads((small / "report.json").read_text())["facts"]
    assert facts["parameters after"] < 0.8 * facts["parameters before"]
    assert facts["weighted error, relative to plain SVD"] < 1
    assert sum(t.size for t in load_file(small / "model.safetensors").values()) == facts["parameters after"]
    moved = small.rename(tmp_path / "moved")
    assert load_encoder(f"trained:{moved}", FP32).spec.dims == {VectorKind.DENSE: 32}
    report = (moved / "report.md").read_text()
    assert "| source | measure | before | restructured | after |" in report
    assert "- factored layers: 12" in report
    recipe = load_recipe(
        recipe_of("cross_encoder", "next", backbone=str(moved), tables={"fit": {"learning_rate": 0.0}})
    )
    run(recipe, tmp_path / "next.work")
    assert load_reranker(str(recipe.out), FP32).score(Query("q", "w2"), [Document("0", "w2 w3")]).shape == (1,)


def test_models_that_cannot_be_compressed_are_refused_with_the_reason(recipe_of: Recipes, tmp_path: Path) -> None:
    options = {"poolings": [""], "tables": {"head": {"dim": 16}}}
    late = load_recipe(recipe_of("multivector", "late", **options))
    run(late, tmp_path / "late.work")
    with pytest.raises(InvalidInput, match=r"takes a cross-encoder \(cross\) or an encoder"):
        CompressStudent(load_recipe(recipe_of("compress", model=str(late.out))))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="keep_ratio is 0"):
        load_recipe(recipe_of("compress", keep_ratio=0.0))
    with pytest.raises(InvalidInput, match="leave adapter out"):
        load_recipe(recipe_of("compress", tables={"adapter": ADAPTER}))
