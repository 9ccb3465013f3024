"""Job `reranker`: UniME-V2's joint loss by hand, its prompts, and folders that the served rerankers open.

The models are small and randomly initialised: the code path is tested, not the quality.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_judges import picture, tiny_text_judge
from support_training import Recipes, make_groups

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_reranker
from chamfer.models.training.data.groups import add_images, read_documents, read_groups
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.jobs.reranker import RerankerLearner
from chamfer.models.training.loop.draws import Draw, Draws
from chamfer.models.training.losses.answers import answer_loss
from chamfer.settings import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about tiny models

CPU = DeviceConfig(device="cpu", precision="fp32")
ADAPTER = {"rank": 8, "alpha": 16}


def test_the_answer_of_two_tokens_by_hand_is_the_logistic_loss_of_the_log_odds() -> None:
    logits = torch.tensor([[2.0, 1.0, 9.0]])
    yes_no = [[0, 1]]
    assert answer_loss(logits, [[0]], yes_no).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert answer_loss(logits, [[1]], yes_no).item() == pytest.approx(math.log(1 + math.exp(1)), abs=1e-6)
    whole = math.exp(2) + math.exp(1) + math.exp(9)
    assert answer_loss(logits, [[0]]).item() == pytest.approx(math.log(whole) - 2, abs=1e-5)
    assert answer_loss(logits, [[0, 1]]).item() == pytest.approx(
        math.log(whole / (math.exp(2) + math.exp(1))), abs=1e-5
    )


def test_the_answer_ignores_a_constant_and_never_rewards_other_tokens() -> None:
    logits, right, possible = torch.randn(3, 7), [[0], [1], [2, 3]], [[0, 1], [0, 1], [1, 2, 3]]
    torch.testing.assert_close(answer_loss(logits + 5, right, possible), answer_loss(logits, right, possible))
    assert (answer_loss(logits, right) >= answer_loss(logits, right, possible)).all()
    torch.testing.assert_close(answer_loss(logits, possible, possible), torch.zeros(3))


@pytest.mark.parametrize("possible", [None, [[0, 1, 4], [0, 2]]])
def test_the_gradient_of_the_answer_is_that_of_finite_differences(possible: Any) -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: answer_loss(x, [[0, 1], [2]], possible), (logits,))


def learner_of(recipe_of: Recipes, backbone: Path, **options: Any) -> RerankerLearner:
    recipe = load_recipe(recipe_of("reranker", backbone=str(backbone), tables={"adapter": ADAPTER}, **options))
    torch.manual_seed(0)
    return RerankerLearner(recipe)  # type: ignore[arg-type]


def draws_of(learner: RerankerLearner) -> list[Draw]:
    groups, documents = make_groups(8)
    draws = Draws(groups, documents, learner.recipe.data, (), 1, learner.sample)
    return [draws[i] for i in range(8)]


def test_the_loss_is_that_of_the_prompts_written_out(recipe_of: Recipes, multimodal: Path) -> None:
    learner = learner_of(recipe_of, multimodal)
    draw = draws_of(learner)[0]
    parts = learner.losses([draw], 0)
    odds = learner.score_group(
        make_groups(8)[0][int(draw.doc_ids[0].removeprefix("d").partition("-")[0])],
        dict(zip(draw.doc_ids, draw.texts, strict=True)),
    ).tolist()
    expected = (math.log(1 + math.exp(-odds[0])) + math.log(1 + math.exp(odds[1]))) / 2
    assert parts["pair"].item() == pytest.approx(expected, abs=1e-4)
    assert parts["list"].item() > 0


def test_prompts_hold_the_texts_and_the_images_of_query_and_candidates(recipe_of: Recipes, multimodal: Path) -> None:
    path = recipe_of("reranker", backbone=str(multimodal), tables={"adapter": ADAPTER})
    add_images(path.parent / "documents.parquet", {"d0-0": picture(1), "d0-1": picture(2)})
    learner = RerankerLearner(load_recipe(path))  # type: ignore[arg-type]
    group = read_groups(path.parent / "groups.parquet")[0]
    texts = read_documents(path.parent / "documents.parquet")
    draw = Draw(group.query, list(group.doc_ids), [texts[i] for i in group.doc_ids], [], [], set(), picture(3))
    pair, hard = learner._pairs(draw)
    listed = learner._list(draw, [2, 0, 3, 1])
    for text in (group.query, texts["d0-0"]):
        assert text in pair.prompt.text
        assert text in listed.prompt.text
    assert texts["d0-1"] in hard.prompt.text
    assert [len(a.prompt.images) for a in (pair, hard, listed)] == [2, 2, 3]
    assert listed.right == learner.language.answer_ids(["2"])
    assert f"(2) {texts['d0-0']}" in listed.prompt.text.replace("<|vision_start|><|image_pad|><|vision_end|>", "")


def test_the_right_answer_is_at_every_position_of_a_list_equally_often(recipe_of: Recipes, multimodal: Path) -> None:
    learner = learner_of(recipe_of, multimodal)
    counts = Counter(order.index(0) for step in range(200) for order in learner.orders(step, [4, 4]))
    chi_square = sum((counts[position] - 100) ** 2 / 100 for position in range(4))
    assert chi_square < 16.3  # p = 0.001 of three degrees of freedom
    assert learner.orders(1, [4, 4]) != learner.orders(2, [4, 4])


def test_eight_lists_are_overfitted(recipe_of: Recipes, multimodal: Path) -> None:
    learner = learner_of(recipe_of, multimodal)
    draws = draws_of(learner)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = learner.losses(draws, 0)["list"]  # the same order in every step
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.35 * values[0]
    assert learner.notes["lists right"] == 1.0


def test_only_the_language_part_of_a_multimodal_model_is_trained(recipe_of: Recipes, multimodal: Path) -> None:
    learner = learner_of(recipe_of, multimodal)
    names = [name for name, p in learner.named_parameters() if p.requires_grad]
    assert names
    assert all("language_model" in name and "lora_" in name for name in names)


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_trained_folder_is_served_by_pairs_and_by_lists(
    kind: str, recipe_of: Recipes, multimodal: Path, tmp_path: Path
) -> None:
    backbone = multimodal if kind == "images" else tiny_text_judge(tmp_path / "text")
    tables = {"adapter": ADAPTER, "data": {"epochs": 4}, "fit": {"learning_rate": 1e-2}}
    recipe = load_recipe(recipe_of("reranker", backbone=str(backbone), tables=tables))
    run(recipe, tmp_path / "work")
    trained, start = (load_reranker(f"unime:{folder}", CPU) for folder in (recipe.out, backbone))
    image = picture(1) if kind == "images" else None
    documents = [Document(str(n), f"w{n} w{n + 1}", image=image) for n in range(5)]
    assert trained.reads_images == (kind == "images")
    assert trained.fingerprint != start.fingerprint
    for n in (2, 5):  # pairs, then a list
        scores = trained.score(Query("q", "w1 w2"), documents[:n])
        assert scores.shape == (n,)
        assert np.abs(scores - start.score(Query("q", "w1 w2"), documents[:n])).max() > 1e-3


def test_the_served_log_odds_are_those_that_were_trained(recipe_of: Recipes, multimodal: Path, tmp_path: Path) -> None:
    tables = {"adapter": ADAPTER, "data": {"epochs": 4}, "fit": {"learning_rate": 1e-2}}
    recipe = load_recipe(recipe_of("reranker", backbone=str(multimodal), tables=tables))
    fitted = run(recipe, tmp_path / "work")
    judge = load_reranker(f"unime:{recipe.out}", CPU)
    groups, documents = make_groups(10)
    ranks = []
    for group in groups[8:]:
        scores = [judge.score(Query("q", group.query), [Document(d, documents[d])])[0] for d in group.doc_ids]
        ranks.append(1 + sum(score > scores[0] for score in scores[1:]))
    assert fitted.after["all"]["RR@10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_an_invalid_reranker_recipe_is_refused(recipe_of: Recipes, multimodal: Path, backbone: Path) -> None:
    with pytest.raises(InvalidInput, match=r"expected 1 to 8"):
        load_recipe(recipe_of("reranker", tables={"data": {"num_negatives": 9}}))
    with pytest.raises(InvalidInput, match=r"hard_negatives is 4"):
        load_recipe(recipe_of("reranker", hard_negatives=4))
    with pytest.raises(InvalidInput, match=r"adapts a chat model"):
        RerankerLearner(load_recipe(recipe_of("reranker", backbone=str(multimodal))))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        RerankerLearner(load_recipe(recipe_of("reranker", backbone=str(backbone), tables={"adapter": ADAPTER})))  # type: ignore[arg-type]
