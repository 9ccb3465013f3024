"""Soups: the mean of heads and of changes, and what cannot be mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support_cli import chamfer

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.models.networks.checkpoint import Description, describe, parts_of, save
from chamfer.models.networks.transformer import Fold
from chamfer.models.training.loop.model_soup import soup


def model(folder: Path, seed: int, *, scale: float = 2.0, layers: tuple[str, ...] = ("layer",), width: int = 2) -> Path:
    rng = torch.Generator().manual_seed(seed)
    description = Description(
        kind="tokens", backbone="mini", features=("last",), query_tokens=8, document_tokens=8, adapter_scale=scale
    )
    changes = {n: Fold(torch.randn((2, 3), generator=rng), torch.randn((4, 2), generator=rng), scale) for n in layers}
    save(folder, description, {"w": torch.randn((width, 2), generator=rng)}, changes)
    return folder


def head_of(folder: Path) -> torch.Tensor:
    return parts_of(folder, describe(folder))[0]["w"]


def change_of(folder: Path, layer: str = "layer") -> torch.Tensor:
    _, changes = parts_of(folder, describe(folder))
    return changes[layer].scale * changes[layer].up @ changes[layer].down


def test_the_mean_is_that_of_heads_and_of_products_not_of_factors(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2)
    soup([a, b], tmp_path / "soup", [3.0, 1.0])
    torch.testing.assert_close(head_of(tmp_path / "soup"), 0.75 * head_of(a) + 0.25 * head_of(b), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(
        change_of(tmp_path / "soup"), 0.75 * change_of(a) + 0.25 * change_of(b), atol=2e-2, rtol=1e-2
    )
    (_, own), (_, other) = (parts_of(folder, describe(folder)) for folder in (a, b))
    up, down = (
        0.75 * own["layer"].up + 0.25 * other["layer"].up,
        0.75 * own["layer"].down + 0.25 * other["layer"].down,
    )
    assert (change_of(tmp_path / "soup") - 2.0 * up @ down).abs().max() > 0.1


def test_equal_models_give_themselves(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    soup([a, a, a], tmp_path / "same")
    torch.testing.assert_close(head_of(tmp_path / "same"), head_of(a), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(change_of(tmp_path / "same"), change_of(a), atol=1e-2, rtol=1e-2)


def test_a_layer_that_one_model_leaves_alone_changes_by_the_share_of_the_other(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2, layers=("layer", "lower"))
    for order in ([a, b], [b, a]):
        out = tmp_path / f"soup-{order[0].name}"
        soup(order, out)
        torch.testing.assert_close(change_of(out, "lower"), 0.5 * change_of(b, "lower"), atol=1e-2, rtol=1e-2)


def test_names_in_a_head_are_kept_where_they_agree_and_refused_where_they_do_not(tmp_path: Path) -> None:
    description = Description(kind="sparse", backbone="mini", features=("last",), query_tokens=8, document_tokens=8)
    for folder, names in (("a", [3, 5]), ("b", [3, 5]), ("c", [3, 6])):
        save(tmp_path / folder, description, {"names": torch.tensor(names), "w": torch.ones(2)}, {})
    soup([tmp_path / "a", tmp_path / "b"], tmp_path / "soup")
    assert torch.equal(parts_of(tmp_path / "soup", description)[0]["names"], torch.tensor([3, 5]))
    with pytest.raises(InvalidInput, match=r"names differ in .*c"):
        soup([tmp_path / "a", tmp_path / "c"], tmp_path / "no")


def test_what_differs_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    a, out = model(tmp_path / "a", 1), tmp_path / "no"
    with pytest.raises(InvalidInput, match=r"cannot be mixed: adapter_scale is 1\.0 in .*c, 2\.0 in .*a"):
        soup([a, model(tmp_path / "c", 3, scale=1.0)], out)
    with pytest.raises(InvalidInput, match="heads cannot be mixed"):
        soup([a, model(tmp_path / "d", 3, width=5)], out)
    with pytest.raises(NotFound, match="chamfer train"):
        soup([a, tmp_path], out)
    for weights in ([1.0], [1.0, -1.0], [float("nan"), 1.0]):
        with pytest.raises(InvalidInput, match="weights"):
            soup([a, a], out, weights)
    with pytest.raises(InvalidInput, match="one of the models"):
        soup([a, a], tmp_path / "x" / ".." / "a")
    assert not out.exists()


def test_the_command_writes_the_mean_and_says_what_went_in(tmp_path: Path) -> None:
    a, b, out = model(tmp_path / "a", 1), model(tmp_path / "b", 2), tmp_path / "soup"
    done = chamfer("soup", str(a), str(b), "--out", str(out), "--weights", "3,1")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(head_of(out), 0.75 * head_of(a) + 0.25 * head_of(b), atol=2e-3, rtol=1e-3)
    said = json.loads((out / "report.json").read_text())["soup"]
    assert [(part["folder"], part["weight"]) for part in said] == [("a", 0.75), ("b", 0.25)]


def test_the_command_says_what_is_wrong_with_its_weights(tmp_path: Path) -> None:
    a = model(tmp_path / "a", 1)
    done = chamfer("soup", str(a), str(a), "--out", str(tmp_path / "soup"), "--weights", "3,x")
    assert done.returncode == 2
    assert "--weights has 'x'" in done.stderr
