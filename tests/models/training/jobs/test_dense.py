"""What the dense job adds: cached gradients, a frozen bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support_training import Recipes, make_groups

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
from chamfer.models.training.jobs.dense import DenseStudent
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.loop.draws import Draws
from chamfer.models.training.loop.gradient_cache import cached
from chamfer.models.training.losses.contrastive import infonce, unit
from chamfer.settings import load_recipe

ADAPTER = {"rank": 4, "alpha": 8}
FP32 = DeviceConfig(precision="fp32", device="cpu")


def student_of(recipe_of: Recipes, **options: object) -> DenseStudent:
    adapter = {**ADAPTER, **dict(options.pop("adapter", {}))}  # type: ignore[call-overload]
    recipe = load_recipe(recipe_of("dense", tables={"adapter": adapter}, **options))
    torch.manual_seed(0)
    student = DenseStudent(recipe)  # type: ignore[arg-type]
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return student.train()


def draws_of(student: DenseStudent) -> list[object]:
    groups, documents = make_groups(8)
    draws = Draws(groups, documents, student.recipe.data, (), 1)
    return [draws[i] for i in range(8)]


def gradients(student: DenseStudent) -> dict[str, torch.Tensor]:
    student.zero_grad()
    torch.manual_seed(5)
    sum(student.losses(draws_of(student), 0).values()).backward()  # type: ignore[arg-type, union-attr]
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def test_cached_gradients_are_those_of_plain_encoding(recipe_of: Recipes) -> None:
    plain = gradients(student_of(recipe_of, gradient_cache=False))
    student = student_of(recipe_of, gradient_cache=True)
    object.__setattr__(student.recipe.fit, "micro_tokens", 32)
    cached_gradients = gradients(student)
    assert plain.keys() == cached_gradients.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_second_pass_of_cached_gradients_draws_the_same_dropout() -> None:
    layer = torch.nn.Linear(4, 3)
    rows = torch.randn(6, 4)

    def encode(part: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(layer(part), 0.5)

    torch.manual_seed(1)
    encoded = cached(encode, [(rows[:3],), (rows[3:],)])
    mask = (encoded != 0).float()
    encoded.sum().backward()
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, 2 * mask.sum(dim=0))


def loss_of(recipe_of: Recipes, **options: object) -> float:
    student = student_of(recipe_of, **options)
    with torch.no_grad():
        return float(student.losses(draws_of(student), 0)["contrastive"])  # type: ignore[arg-type]


def test_matryoshka_prefixes_and_focal_weights_reach_the_loss(recipe_of: Recipes) -> None:
    values = [
        loss_of(recipe_of),
        loss_of(recipe_of, matryoshka_dims=[32], matryoshka_weights=[1.0]),
        loss_of(recipe_of, matryoshka_dims=[32, 8], matryoshka_weights=[1.0, 0.3]),
        loss_of(recipe_of, focal_gamma=0.5),
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] > values[1]
    assert 0 < values[3] < values[0]
    with pytest.raises(InvalidInput, match=r"2 matryoshka_dims and 1 matryoshka_weights"):
        student_of(recipe_of, matryoshka_dims=[32, 8], matryoshka_weights=[1.0])


def test_mixes_only_add_to_the_denominator(recipe_of: Recipes) -> None:
    assert loss_of(recipe_of, mixed_pairs=2, mixed_list=True) > loss_of(recipe_of)


def test_a_bank_of_the_batch_alone_gives_the_in_batch_loss(recipe_of: Recipes) -> None:
    student = student_of(recipe_of, bank=True)
    draws = draws_of(student)
    texts = [text for draw in draws for text in draw.texts]  # type: ignore[attr-defined]
    student.prepare(texts, 1)
    with torch.no_grad():
        bank = float(student.losses(draws, 0)["bank"])  # type: ignore[arg-type]
        queries = unit(student.encode([draw.query for draw in draws], 64))  # type: ignore[attr-defined]
        documents = unit(student.encode(texts, 24))
    expected = infonce(queries @ documents.T / student.recipe.temperature, torch.arange(8) * 4)
    assert bank == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(student._bank.norm(dim=1), torch.ones(32))
    assert not student._bank.requires_grad


def test_a_model_trained_against_a_bank_keeps_document_vectors_unchanged(recipe_of: Recipes, tmp_path: Path) -> None:
    path = recipe_of("dense", tables={"adapter": ADAPTER, "data": {"epochs": 5}}, bank=True)
    recipe = load_recipe(path)
    run(recipe, tmp_path / "work")
    encoder = load_encoder(f"trained:{recipe.out}", FP32)
    torch.manual_seed(0)
    start = DenseStudent(recipe).eval()  # type: ignore[arg-type]  # a fresh adapter changes nothing
    text = "w1 w2 w3"
    with torch.no_grad():
        before = unit(start.encode([text], 24))[0].numpy()
    document = encoder.encode_documents([Document("0", text)], [VectorKind.DENSE]).dense
    query = encoder.encode_queries([Query("0", text)], [VectorKind.DENSE]).dense
    assert document is not None
    assert query is not None
    np.testing.assert_allclose(document.values[0], before, atol=1e-4)
    assert np.abs(query.values[0] - before).max() > 1e-2
