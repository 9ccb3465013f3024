"""Model soups: the mean of heads and of adapter updates, and models that cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support_cli import chamfer

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.models.networks.checkpoint import Description, open_checkpoint, write_checkpoint
from chamfer.models.networks.transformer import LowRankUpdate
from chamfer.models.training.loop.model_soup import soup


def model(folder: Path, seed: int, *, scale: float = 2.0, layers: tuple[str, ...] = ("layer",), width: int = 2) -> Path:
    rng = torch.Generator().manual_seed(seed)
    description = Description(
        kind="tokens", backbone="mini", features=("last",), query_tokens=8, document_tokens=8, adapter_scale=scale
    )
    adapter = {
        n: LowRankUpdate(torch.randn((2, 3), generator=rng), torch.randn((4, 2), generator=rng), scale) for n in layers
    }
    write_checkpoint(folder, description, {"w": torch.randn((width, 2), generator=rng)}, adapter)
    return folder


def head_of(folder: Path) -> torch.Tensor:
    return open_checkpoint(folder).head["w"]


def update_of(folder: Path, layer: str = "layer") -> torch.Tensor:
    update = open_checkpoint(folder).adapter[layer]
    return update.scale * update.up @ update.down


def test_the_mean_is_that_of_heads_and_of_products_not_of_factors(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2)
    soup([a, b], tmp_path / "soup", [3.0, 1.0])
    torch.testing.assert_close(head_of(tmp_path / "soup"), 0.75 * head_of(a) + 0.25 * head_of(b), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(
        update_of(tmp_path / "soup"), 0.75 * update_of(a) + 0.25 * update_of(b), atol=2e-2, rtol=1e-2
    )
    one, other = (open_checkpoint(folder).adapter for folder in (a, b))
    up, down = (
        0.75 * one["layer"].up + 0.25 * other["layer"].up,
        0.75 * one["layer"].down + 0.25 * other["layer"].down,
    )
    assert (update_of(tmp_path / "soup") - 2.0 * up @ down).abs().max() > 0.1


def test_the_mean_of_equal_models_is_the_model(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    soup([a, a, a], tmp_path / "same")
    torch.testing.assert_close(head_of(tmp_path / "same"), head_of(a), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(update_of(tmp_path / "same"), update_of(a), atol=1e-2, rtol=1e-2)


def test_a_layer_that_one_model_leaves_alone_changes_by_the_share_of_the_other(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2, layers=("layer", "lower"))
    for order in ([a, b], [b, a]):
        out = tmp_path / f"soup-{order[0].name}"
        soup(order, out)
        torch.testing.assert_close(update_of(out, "lower"), 0.5 * update_of(b, "lower"), atol=1e-2, rtol=1e-2)


def test_names_in_a_head_are_kept_where_they_agree_and_refused_where_they_do_not(tmp_path: Path) -> None:
    description = Description(kind="sparse", backbone="mini", features=("last",), query_tokens=8, document_tokens=8)
    for folder, names in (("a", [3, 5]), ("b", [3, 5]), ("c", [3, 6])):
        write_checkpoint(tmp_path / folder, description, {"names": torch.tensor(names), "w": torch.ones(2)}, {})
    soup([tmp_path / "a", tmp_path / "b"], tmp_path / "soup")
    assert torch.equal(open_checkpoint(tmp_path / "soup").head["names"], torch.tensor([3, 5]))
    with pytest.raises(InvalidInput, match=r"names differ in .*c"):
        soup([tmp_path / "a", tmp_path / "c"], tmp_path / "no")


def test_models_that_differ_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    a, target = model(tmp_path / "a", 1), tmp_path / "no"
    with pytest.raises(InvalidInput, match=r"cannot be averaged: adapter_scale is 1\.0 in .*c, 2\.0 in .*a"):
        soup([a, model(tmp_path / "c", 3, scale=1.0)], target)
    with pytest.raises(InvalidInput, match="heads cannot be averaged"):
        soup([a, model(tmp_path / "d", 3, width=5)], target)
    with pytest.raises(NotFound, match="chamfer train"):
        soup([a, tmp_path], target)
    for weights in ([1.0], [1.0, -1.0], [float("nan"), 1.0]):
        with pytest.raises(InvalidInput, match="weights"):
            soup([a, a], target, weights)
    with pytest.raises(InvalidInput, match="one of the models"):
        soup([a, a], tmp_path / "x" / ".." / "a")
    assert not target.exists()


def test_the_command_writes_the_mean_and_reports_its_models(tmp_path: Path) -> None:
    a, b, out = model(tmp_path / "a", 1), model(tmp_path / "b", 2), tmp_path / "soup"
    done = chamfer("soup", str(a), str(b), "--out", str(out), "--weights", "3,1")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(head_of(out), 0.75 * head_of(a) + 0.25 * head_of(b), atol=2e-3, rtol=1e-3)
    ingredients = json.loads((out / "report.json").read_text())["soup"]
    assert [(part["folder"], part["weight"]) for part in ingredients] == [("a", 0.75), ("b", 0.25)]


def test_the_command_reports_invalid_weights(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    done = chamfer("soup", str(a), str(a), "--out", str(tmp_path / "soup"), "--weights", "3,x")
    assert done.returncode == 2
    assert "--weights contains 'x'" in done.stderr
