"""Model soups: the weighted mean of models of one kind (arXiv 2203.05482; LM-Cocktail, arXiv 2311.13534)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import Checkpoint, Description, fingerprint, open_checkpoint, write_checkpoint
from chamfer.models.networks.transformer import LowRankUpdate


def soup(folders: Sequence[Path], out: Path, weights: Sequence[float] = ()) -> None:
    """Writes the weighted mean of trained models; without weights all count equally. Weights are divided by their sum.

    Heads are averaged. Of adapters the updates are averaged exactly: sum_i w_i up_i down_i is one update whose factors
    are concatenated, whereas averaging the factors would multiply up_i with down_j. A layer that a model does not
    adapt contributes no update. The rank is the sum of all ranks, which costs nothing once the adapter is merged.
    OUT/report.json lists the models and their weights. InvalidInput for models of different shape or unusable weights.
    """
    shares = list(weights) or [1.0] * len(folders)
    if len(shares) != len(folders) or not folders:
        raise InvalidInput(f"a soup of {len(folders)} models has {len(shares)} weights, expected one for each model")
    if not all(map(math.isfinite, shares)) or sum(shares) <= 0:
        raise InvalidInput(f"the weights of a soup are {shares}; expected finite numbers with a sum above 0")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InvalidInput(f"{out} is one of the models to average; choose another folder")
    checkpoints = [open_checkpoint(folder) for folder in folders]
    first = checkpoints[0].description
    for folder, checkpoint in zip(folders[1:], checkpoints[1:], strict=True):
        _check_compatible(folders[0], first, folder, checkpoint.description)
    normal = [share / sum(shares) for share in shares]
    head = _mean(folders, [checkpoint.head for checkpoint in checkpoints], normal)
    write_checkpoint(out, first, head, _mean_update(checkpoints, normal))
    ingredients = [
        {"folder": folder.name, "fingerprint": fingerprint(folder), "weight": weight}
        for folder, weight in zip(folders, normal, strict=True)
    ]
    (out / "report.json").write_text(json.dumps({"soup": ingredients}, indent=1) + "\n", encoding="utf-8")


def _check_compatible(folder: Path, description: Description, other: Path, compared: Description) -> None:
    differing = [
        f"{field.name} is {getattr(compared, field.name)!r} in {other}, "
        f"{getattr(description, field.name)!r} in {folder}"
        for field in fields(Description)
        if getattr(compared, field.name) != getattr(description, field.name)
    ]
    if differing:
        raise InvalidInput(f"these models cannot be averaged: {'; '.join(differing)}")


def _mean(
    folders: Sequence[Path], heads: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    for folder, head in zip(folders, heads, strict=True):
        names = sorted(name for name in {*heads[0], *head} if not _compatible(heads[0].get(name), head.get(name)))
        if names:
            raise InvalidInput(f"heads cannot be averaged: {', '.join(names)} differ in {folder} and {folders[0]}")
    return {
        name: torch.stack([w * head[name] for w, head in zip(weights, heads, strict=True)]).sum(dim=0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in heads[0].items()
    }


def _compatible(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether both can be averaged: real numbers of one shape, or equal identifiers."""
    if first is None or second is None or first.shape != second.shape:
        return False
    return first.is_floating_point() or torch.equal(first, second)


def _mean_update(checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> dict[str, LowRankUpdate]:
    scale = checkpoints[0].description.adapter_scale
    mean = {}
    for layer in sorted(set().union(*(checkpoint.adapter for checkpoint in checkpoints))):
        updates = [(w, c.adapter[layer]) for w, c in zip(weights, checkpoints, strict=True) if layer in c.adapter]
        down = torch.cat([update.down for _, update in updates])
        mean[layer] = LowRankUpdate(down, torch.cat([w * update.up for w, update in updates], dim=1), scale)
    return mean
