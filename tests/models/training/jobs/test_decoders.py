"""Decoders as encoders: without the causal mask, with a mean over all tokens (KaLM-Embedding-V2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support_judges import tiny_text_judge
from support_training import Recipes

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.features import Attention
from chamfer.models.networks.transformer import open_tower
from chamfer.models.registry import load_encoder
from chamfer.models.training.jobs.dense import DenseStudent
from chamfer.models.training.jobs.registry import run
from chamfer.settings import load_recipe

ADAPTER = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_judge(tmp_path_factory.mktemp("decoder"))


def states(decoder: Path, ids: list[list[int]], mask: list[list[int]], attention: Attention) -> torch.Tensor:
    tower = open_tower(str(decoder), ("last",), attention=attention).eval()
    with torch.no_grad():
        return tower(torch.tensor(ids), torch.tensor(mask))


@pytest.mark.parametrize("padding", [0, 3])
def test_later_tokens_reach_earlier_ones_only_without_the_causal_mask(decoder: Path, padding: int) -> None:
    ids = [[20, 21, 22, 23] + [0] * padding, [20, 21, 23, 22] + [0] * padding]
    mask = [[1] * 4 + [0] * padding] * 2
    causal = states(decoder, ids, mask, "own")
    torch.testing.assert_close(causal[0, :2], causal[1, :2])
    both = states(decoder, ids, mask, "bidirectional")
    assert (both[0, :2] - both[1, :2]).abs().max() > 1e-3


def test_padding_changes_no_state_of_a_decoder_that_sees_both_ways(decoder: Path) -> None:
    alone = states(decoder, [[20, 21, 22]], [[1, 1, 1]], "bidirectional")[0]
    padded = states(decoder, [[20, 21, 22, 0, 0], [30, 31, 32, 33, 34]], [[1, 1, 1, 0, 0], [1] * 5], "bidirectional")
    torch.testing.assert_close(padded[0, :3], alone, atol=1e-5, rtol=1e-4)


def test_a_decoder_trained_as_an_encoder_gives_the_trained_vectors_when_loaded(
    decoder: Path, recipe_of: Recipes, tmp_path: Path
) -> None:
    options = {"backbone": str(decoder), "attention": "bidirectional", "temperature": 0.2}
    tables = {"adapter": ADAPTER, "data": {"epochs": 10}, "fit": {"warmup_ratio": 0.0}}
    recipe = load_recipe(recipe_of("dense", tables=tables, **options))
    fitted = run(recipe, tmp_path / "work")
    assert fitted.curve[-1]["part_contrastive"] < 0.5 * fitted.curve[0]["part_contrastive"]
    encoder = load_encoder(f"trained:{recipe.out}", DeviceConfig(precision="fp32", device="cpu"))
    texts = ["w1 w2 w3", "w4", ""]
    document_vectors = encoder.encode_documents([Document(t, t) for t in texts], [VectorKind.DENSE]).dense
    query = encoder.encode_queries([Query("q", "w3 w1")], [VectorKind.DENSE]).dense
    assert document_vectors is not None
    assert query is not None
    student = DenseStudent(recipe)  # type: ignore[arg-type]
    modules = dict(student.tower.transformer.named_modules())
    from chamfer.models.networks.checkpoint import open_checkpoint

    with torch.no_grad():
        for name, update in open_checkpoint(recipe.out).adapter.items():
            modules[name].lora_A["default"].weight.copy_(update.down)
            modules[name].lora_B["default"].weight.copy_(update.up)
        expected = student.eval().score("w3 w1", texts).numpy()
    np.testing.assert_allclose(document_vectors.values @ query.values[0], expected, atol=2e-3)


def test_adapting_missing_layers_is_refused(decoder: Path, recipe_of: Recipes) -> None:
    tables = {"adapter": {**ADAPTER, "target_modules": ["query"]}}
    with pytest.raises(InvalidInput, match=r"no linear layer named query"):
        DenseStudent(load_recipe(recipe_of("dense", backbone=str(decoder), tables=tables)))  # type: ignore[arg-type]
