"""Losses over each query's own candidates: pointwise, pairwise, listwise, optionally weighted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pointwise(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of sigmoid(scores) f32 [B, K] with labels in [0, 1]."""
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return _mean(losses, torch.ones_like(losses), weights)


def pairwise(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log sigmoid(s_i - s_j) over the pairs of a query with label_i > label_j (RankNet, ICML 2005).

    weights f32 [B, K] belong to candidates: a pair has the weight w_i w_j. With positives at 1 and negatives at w(S)
    this is CET's L_R (losses/selection.py). The mean runs over pairs.
    """
    pairs = labels[:, :, None] > labels[:, None, :]
    losses = F.softplus(scores[:, None, :] - scores[:, :, None])
    product = None if weights is None else weights[:, :, None] * weights[:, None, :]
    return _mean(losses, pairs.to(losses.dtype), product)


def listwise(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_i y_i log softmax(scores)_i, y the labels of a query divided by their sum (ListNet's top one, ICML 2007).

    A negative's weight enters the softmax as log w, as if the candidate occurred w times.
    """
    if weights is not None:
        scores = scores + torch.where(labels > 0, torch.zeros_like(weights), weights.log())
    targets = labels / labels.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return -(targets * torch.log_softmax(scores, dim=1)).sum(dim=1).mean()


def _mean(losses: Tensor, counted: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None:
        losses = losses * weights
    return (losses * counted).sum() / counted.sum().clamp_min(1.0)
