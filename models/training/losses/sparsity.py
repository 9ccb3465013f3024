"""Regularisers that keep learned sparse document vectors short, and activations."""

from __future__ import annotations

import torch
from torch import Tensor


def flops(weights: Tensor) -> Tensor:
    """sum_j (mean over documents of w_ij)^2 of document weights f32 [N, V] >= 0 (Paria et al., ICLR 2020).

    Gradient 2 mean_j / N; homogeneous of degree 2.
    """
    return weights.mean(dim=0).square().sum()


def grouped_flops(weights: Tensor) -> Tensor:
    """The sum over candidate slots of `flops` of weights f32 [S, N, V], as in the training code of arXiv 2411.04403.

    At least S times `flops` over all documents, so a penalty weight does not transfer from one form to the other.
    """
    return weights.mean(dim=1).square().sum()


def masked_flops(weights: Tensor, threshold: int) -> Tensor:
    """`flops` of the documents with more than `threshold` non-zeros, averaged over all documents (arXiv 2504.14839)."""
    if threshold <= 0:
        return flops(weights)
    long = (weights > 0).sum(dim=1, keepdim=True) > threshold
    return flops(torch.where(long, weights, torch.zeros_like(weights)))


def ramp(weight: float, step: int, steps: int) -> float:
    """weight ((step+1)/steps)^2 until `steps`, then weight; without a ramp, documents collapse to empty vectors."""
    return weight * min(1.0, (step + 1) / max(steps, 1)) ** 2


def double_log(logits: Tensor) -> Tensor:
    """log(1 + log(1 + relu(x))), with the support and order of relu (arXiv 2504.14839)."""
    return torch.log1p(torch.log1p(torch.relu(logits)))


def single_log(logits: Tensor) -> Tensor:
    """log(1 + relu(x)), SPLADE's activation."""
    return torch.log1p(torch.relu(logits))
