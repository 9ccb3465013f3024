"""Job `universal`: negatives of both kinds, the judge's soft labels, and one space for texts and images.

The model is small and randomly initialised: the code path is tested, not the quality.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_judges import picture
from support_training import Recipes, make_groups

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
from chamfer.models.training.data.groups import Group, add_images, write_groups
from chamfer.models.training.data.modality import modality_negatives, sample_modalities
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.jobs.universal import UniversalLearner
from chamfer.models.training.loop.draws import Draws
from chamfer.models.training.losses.contrastive import unit
from chamfer.models.training.losses.distillation import half_jeffreys
from chamfer.settings import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about tiny models

CPU = DeviceConfig(device="cpu", precision="fp32")
ADAPTER = {"rank": 8, "alpha": 16}
NAN = float("nan")


def group(modality: list[float], ranks: list[float], positive: int = 2) -> Group:
    n = len(modality)
    return Group(
        query_id="q",
        query="?",
        doc_ids=[str(index) for index in range(n)],
        labels=[float(index == positive) for index in range(n)],
        teachers={"modality": modality, "rank": ranks},
    )


def test_wrong_modality_negatives_outrank_the_positive_and_right_modality_ones_rank_below_the_minimum() -> None:
    mined = group([1, 0, 0, 1, 0, 0], [1, 2, 3, 4, 46, 60])
    assert modality_negatives(mined, 2, min_negative_rank=45) == ([0], [4, 5])
    assert modality_negatives(mined, 2, min_negative_rank=1) == ([0], [1, 4, 5])


def test_wrong_modality_negatives_are_none_at_rank_one_and_all_for_an_unretrieved_positive() -> None:
    assert modality_negatives(group([0, 1, 1], [1, 2, 3], positive=0), 0, min_negative_rank=45)[0] == []
    assert modality_negatives(group([0] * 4, [1, 2, 3, 4]), 2, min_negative_rank=45)[0] == []
    assert modality_negatives(group([1, 1, 0], [1, 50, NAN]), 2, min_negative_rank=45)[0] == [0, 1]


def test_both_kinds_of_negatives_are_drawn_equally_often_and_positives_never() -> None:
    mined = group([1, 1, 0, 1, 1, 0, 0, 0, 0, 0], [1, 2, 9, 3, 4, 46, 47, 48, 49, 5])
    wrong = 0
    for seed in range(400):
        positive, *negatives = sample_modalities(mined, 1, 45, np.random.default_rng(seed))
        assert positive == 2
        assert set(negatives) <= {0, 1, 3, 4, 5, 6, 7, 8}
        wrong += negatives[0] < 5
    assert 160 < wrong < 240
    many = sample_modalities(mined, 12, 45, np.random.default_rng(0))[1:]
    assert len(many) == 12
    assert set(many) == {0, 1, 3, 4, 5, 6, 7, 8, 9}  # then the rest, then repetitions


def test_the_alignment_of_two_candidates_by_hand() -> None:
    """Student logits (1, 0), judge logits (0, 0): p = sigmoid(1), q = 1/2."""
    p, q = 1 / (1 + math.exp(-1)), 0.5
    expected = 0.5 * sum(
        a * math.log(a / b)
        for one, other in (((p, 1 - p), (q, q)), ((q, q), (p, 1 - p)))
        for a, b in zip(one, other, strict=True)
    )
    divergence = half_jeffreys(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    assert divergence.item() == pytest.approx(expected, abs=1e-6)
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    judge_logits = torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: half_jeffreys(x, judge_logits), (logits,))


def learner_of(recipe_of: Recipes, multimodal: Path, **options: Any) -> UniversalLearner:
    path = recipe_of("universal", backbone=str(multimodal), tables={"adapter": ADAPTER}, **options)
    add_images(path.parent / "documents.parquet", {"d0-0": picture(1), "d1-2": picture(2)})
    torch.manual_seed(0)
    learner = UniversalLearner(load_recipe(path))  # type: ignore[arg-type]
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return learner.train()


def gradients(learner: UniversalLearner) -> dict[str, torch.Tensor]:
    groups, documents = make_groups(4)
    draws = Draws(groups, documents, learner.recipe.data, learner.teachers, 1)
    sum(learner.losses([draws[i] for i in range(4)], 0).values()).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def test_cached_gradients_are_those_of_plain_encoding_over_texts_and_images(
    recipe_of: Recipes, multimodal: Path
) -> None:
    plain, cached_gradients = (
        gradients(learner_of(recipe_of, multimodal, judge_column="dense", gradient_cache=cached))
        for cached in (False, True)
    )
    assert plain.keys() == cached_gradients.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached_gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_a_constant_added_to_all_scores_of_a_judge_changes_nothing(recipe_of: Recipes, multimodal: Path) -> None:
    learner = learner_of(recipe_of, multimodal, judge_column="dense")
    groups, documents = make_groups(2)
    shifted = [
        Group(g.query_id, g.query, g.doc_ids, g.labels, teachers={"dense": [x + 3 for x in g.teachers["dense"]]})
        for g in groups
    ]
    values = []
    for scored_groups in (groups, shifted):
        draws = Draws(scored_groups, documents, learner.recipe.data, learner.teachers, 1)
        values.append(learner.losses([draws[0], draws[1]], 0)["judge"].item())
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_a_trained_encoder_serves_texts_and_images_as_they_were_trained(
    recipe_of: Recipes, multimodal: Path, tmp_path: Path
) -> None:
    tables = {"adapter": ADAPTER, "fit": {"learning_rate": 1e-2}}
    options = {"backbone": str(multimodal), "instruction": "fox? ", "tables": tables}
    recipe = load_recipe(recipe_of("universal", **options))
    add_images(tmp_path / "documents.parquet", {"d0-0": picture(1)})
    run(recipe, tmp_path / "work")
    encoder = load_encoder(f"trained:{recipe.out}", CPU)
    documents = [Document("0", "w1 w2"), Document("1", "", image=picture(4)), Document("2", "w1", image=picture(5))]
    encoded = encoder.encode_documents([*documents, Document("3", "")], [VectorKind.DENSE])
    assert encoded.dense is not None
    np.testing.assert_allclose(np.linalg.norm(encoded.dense.values, axis=1), 1, atol=1e-5)
    assert encoded.n_tokens.tolist()[1] == 0
    for row, document in enumerate(documents):
        alone = encoder.encode_documents([document], [VectorKind.DENSE]).dense
        assert alone is not None
        np.testing.assert_allclose(alone.values[0], encoded.dense.values[row], atol=1e-4)
    learner = UniversalLearner(recipe)  # type: ignore[arg-type]
    modules = dict(learner.tower.named_modules())
    from chamfer.models.networks.checkpoint import open_checkpoint

    with torch.no_grad():
        for name, update in open_checkpoint(recipe.out).adapter.items():
            modules[name].lora_A["default"].weight.copy_(update.down)
            modules[name].lora_B["default"].weight.copy_(update.up)
        learner.eval()
        expected = unit(learner.encode([learner._query("w3", picture(6))])).numpy()
    queries = [Query("q", "w3", image=picture(6)), Query("r", "w3")]
    both = encoder.encode_queries(queries, [VectorKind.DENSE]).dense
    assert both is not None
    np.testing.assert_allclose(both.values[0], expected[0], atol=2e-3)
    assert np.abs(both.values[0] - both.values[1]).max() > 1e-3  # the image affects the vector
    assert encoder.spec.dims == {VectorKind.DENSE: 32}


def test_modality_negatives_need_and_use_the_columns_of_mining(
    recipe_of: Recipes, multimodal: Path, tmp_path: Path
) -> None:
    options = {
        "backbone": str(multimodal),
        "modality_negatives": True,
        "min_negative_rank": 2,
        "tables": {"adapter": ADAPTER},
    }
    recipe = load_recipe(recipe_of("universal", **options))
    with pytest.raises(InvalidInput, match=r"no column \['modality'\]; mine with --modality"):
        run(recipe, tmp_path / "no.work")
    groups, _ = make_groups(10)
    more = {"modality": [0.0, 1.0, 0.0, 0.0], "rank": [2.0, 1.0, 3.0, 4.0]}
    write_groups(
        tmp_path / "groups.parquet",
        [Group(g.query_id, g.query, g.doc_ids, g.labels, g.source, g.split, {**g.teachers, **more}) for g in groups],
    )
    assert run(recipe, tmp_path / "work").steps == 2
