"""Soups: one model from several of the same kind (Wortsman et al., arXiv 2203.05482; LM-Cocktail, arXiv 2311.13534)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from chamfer.errors import InvalidInput
from models.tower import Fold
from models.trained import describe, parts_of, save


def soup(folders: Sequence[Path], out: Path, weights: Sequence[float] = ()) -> None:
    """Writes the weighted mean of trained models; without weights all count alike. They are divided by their sum.

    Heads are averaged. Of adapters the *changes* are averaged, exactly: sum_i w_i up_i down_i is one change whose
    factors stand side by side, where averaging the factors would multiply up_i with down_j.
    """
    shares = list(weights) or [1.0] * len(folders)
    if len(shares) != len(folders) or not folders or sum(shares) <= 0:
        raise InvalidInput(f"a soup of {len(folders)} models with weights {shares}; expected one weight for each")
    descriptions = [describe(folder) for folder in folders]
    for folder, description in zip(folders, descriptions, strict=True):
        if description != descriptions[0]:
            raise InvalidInput(f"{folder} is {description}, {folders[0]} is {descriptions[0]}: they cannot be mixed")
    parts = [parts_of(folder, description) for folder, description in zip(folders, descriptions, strict=True)]
    normal = [share / sum(shares) for share in shares]
    head = {
        name: sum((w * part[0][name] for w, part in zip(normal, parts, strict=True)), torch.zeros(()))
        for name in parts[0][0]
    }
    adapter = {
        name: Fold(
            torch.cat([part[1][name].down for part in parts]),
            torch.cat([w * part[1][name].up for w, part in zip(normal, parts, strict=True)], dim=1),
            descriptions[0].adapter_scale,
        )
        for name in parts[0][1]
    }
    save(out, descriptions[0], head, adapter)
