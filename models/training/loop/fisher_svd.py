"""Truncated SVD of linear layers, inputs weighted by their Fisher information (FWSVD, arXiv 2207.00112).

A layer y = W x with W f32 [m, n]. Its empirical Fisher information is the mean over examples of the squared gradient of
one example's loss, F f32 [m, n]; the importance of input j is I_j = sum_i F_ij. With J = diag(sqrt(I)), the factors of
rank r that minimise || (W - W') J ||_F come from the SVD of W J. Weights of single elements have no closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Example = TypeVar("Example")
_MIN_IMPORTANCE = 1e-6  # relative to the mean, so that inputs which no example used keep their weights


def importances(
    layers: Mapping[str, nn.Linear], loss: Callable[[Example], Tensor], examples: Sequence[Example]
) -> dict[str, Tensor]:
    """Importance f64 [n] of each layer's inputs: the squared gradient of each example, averaged, summed over outputs.

    The squared mean gradient of a batch would be a different, smaller quantity. No `grad` is left behind.
    """
    weights = [(name, layer.weight) for name, layer in layers.items()]
    trainable = [weight.requires_grad for _, weight in weights]
    for _, weight in weights:
        weight.requires_grad_(True)
    totals = {name: torch.zeros(weight.shape[1], dtype=torch.float64) for name, weight in weights}
    for example in examples:
        gradients = torch.autograd.grad(loss(example), [weight for _, weight in weights], allow_unused=True)
        for (name, _), gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                totals[name] += gradient.double().square().sum(dim=0).cpu() / len(examples)
    for (_, weight), before in zip(weights, trainable, strict=True):
        weight.requires_grad_(before)
    return totals


def weighted_svd(weight: Tensor, importance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(inner f32 [r, n], outer f32 [m, r]) whose product minimises the weighted error to weight f32 [m, n].

    Both factors get the square root of the singular values, which keeps either small enough for f16. Importances
    f64 [n] may be scaled by any constant; equal ones give plain truncated SVD.
    """
    scale = importance.double()
    scale = torch.ones_like(scale) if not scale.sum() > 0 else scale / scale.mean()
    scale = scale.clamp_min(_MIN_IMPORTANCE).sqrt()
    left, values, right = torch.linalg.svd(weight.detach().double().cpu() * scale, full_matrices=False)
    root = values[:rank].sqrt()
    inner = root[:, None] * right[:rank] / scale
    outer = left[:, :rank] * root
    return inner.to(weight), outer.to(weight)


def weighted_error(weight: Tensor, importance: Tensor, factors: tuple[Tensor, Tensor]) -> float:
    """sum_ij I_j (W - W')_ij^2."""
    inner, outer = (factor.double() for factor in factors)
    return float(((weight.double() - outer @ inner).square() * importance.double()).sum())


def rank_of(weight: Tensor, keep_ratio: float) -> int:
    """The rank, 1 to min(m, n), whose two factors have `keep_ratio` times as many parameters as weight [m, n]."""
    m, n = weight.shape
    return min(m, n, max(1, int(keep_ratio * m * n / (m + n))))
