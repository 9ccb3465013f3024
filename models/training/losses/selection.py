"""Weights against pooling bias: CET (arXiv 2209.05072) as released, and corrected forms.

A positive label means relevant and selected (r and s). All weights are detached: no gradient reaches their model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def released_weights(other: Tensor, temperature: float) -> Tensor:
    """1 / (1 - sigmoid(S/T)) = 1 + exp(S/T) of the negatives, S f32 [...] the other model's scores.

    Always above 1, 2 at S = 0, growing in S. With both models reading the same input the coupled optimum ranks as no
    weighting does: f + log(1 + exp(f/T)) = log p+/p- is solved by an increasing function of the unweighted optimum.
    """
    return 1.0 + torch.exp(other.detach() / temperature)


def selection_weights(selected: Tensor, max_weight: float) -> Tensor:
    """min(1 / (1 - p_s), max_weight) of negatives with selection probability p_s f32 [...], divided by their mean.

    The division undoes the change of the effective learning rate that comes with a mean weight of about 2.
    """
    weights = torch.clamp(1.0 / (1.0 - selected.detach()).clamp_min(1e-6), max=max_weight)
    return weights / weights.mean()


def exact_weights(selected: Tensor, relevant: Tensor, min_selected: float = 0.1) -> tuple[Tensor, Tensor]:
    """(positive weights 1 / max(p_s, min_selected), negative weights (1 - p_r) / (1 - p_r p_s)), f32 [...] each.

    With them the pairwise logistic optimum is log p_r / (1 - p_r): unbiased, at the price of variance.
    """
    selected, relevant = selected.detach(), relevant.detach()
    return 1.0 / selected.clamp_min(min_selected), (1.0 - relevant) / (1.0 - relevant * selected).clamp_min(1e-6)
