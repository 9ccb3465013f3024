"""Soups: one model from several of the same kind (Wortsman et al., arXiv 2203.05482; LM-Cocktail, arXiv 2311.13534)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import Description, describe, fingerprint, parts_of, save
from chamfer.models.networks.transformer import Fold


def soup(folders: Sequence[Path], out: Path, weights: Sequence[float] = ()) -> None:
    """Writes the weighted mean of trained models; without weights all count alike. They are divided by their sum.

    Heads are averaged. Of adapters the *changes* are averaged, exactly: sum_i w_i up_i down_i is one change whose
    factors stand side by side, where averaging the factors would multiply up_i with down_j. A layer that a model
    leaves alone changes by nothing there. The rank is the sum of all, which costs nothing once it is folded in.
    OUT/report.json says what went in.
    """
    shares = list(weights) or [1.0] * len(folders)
    if len(shares) != len(folders) or not folders:
        raise InvalidInput(f"a soup of {len(folders)} models with {len(shares)} weights; expected one for each")
    if not all(map(math.isfinite, shares)) or sum(shares) <= 0:
        raise InvalidInput(f"the weights of a soup are {shares}; expected finite ones whose sum is above 0")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InvalidInput(f"{out} is one of the models that go in; choose another folder to write")
    first, *others = descriptions = [describe(folder) for folder in folders]
    for folder, description in zip(folders[1:], others, strict=True):
        _check_alike(folders[0], first, folder, description)
    heads, adapters = zip(*map(parts_of, folders, descriptions), strict=True)
    normal = [share / sum(shares) for share in shares]
    save(out, first, _mean(folders, heads, normal), _mean_change(adapters, normal, first.adapter_scale))
    parts = zip(folders, descriptions, normal, strict=True)
    said = [{"folder": f.name, "fingerprint": fingerprint(f, d), "weight": weight} for f, d, weight in parts]
    (out / "report.json").write_text(json.dumps({"soup": said}, indent=1) + "\n", encoding="utf-8")


def _check_alike(folder: Path, description: Description, other: Path, found: Description) -> None:
    differing = [
        f"{field.name} is {getattr(found, field.name)!r} in {other}, {getattr(description, field.name)!r} in {folder}"
        for field in fields(Description)
        if getattr(found, field.name) != getattr(description, field.name)
    ]
    if differing:
        raise InvalidInput(f"these models cannot be mixed: {'; '.join(differing)}")


def _mean(
    folders: Sequence[Path], heads: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    for folder, head in zip(folders, heads, strict=True):
        if unlike := sorted(name for name in {*heads[0], *head} if not _fit(heads[0].get(name), head.get(name))):
            raise InvalidInput(f"heads cannot be mixed: {', '.join(unlike)} differ in {folder} and {folders[0]}")
    return {
        name: torch.stack([w * head[name] for w, head in zip(weights, heads, strict=True)]).sum(dim=0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in heads[0].items()
    }


def _fit(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both can be averaged: of one shape, and where they are names and not numbers, the same."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return one.is_floating_point() or torch.equal(one, other)


def _mean_change(adapters: Sequence[Mapping[str, Fold]], weights: Sequence[float], scale: float) -> dict[str, Fold]:
    out = {}
    for name in sorted(set().union(*adapters)):
        own = [(w, adapter[name]) for w, adapter in zip(weights, adapters, strict=True) if name in adapter]
        down = torch.cat([change.down for _, change in own])
        out[name] = Fold(down, torch.cat([w * change.up for w, change in own], dim=1), scale)
    return out
