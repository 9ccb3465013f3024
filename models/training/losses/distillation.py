"""Distillation losses: from teachers' scores of a query's candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of logits f32 [B, K]; 0 iff they differ by a constant per query."""
    return F.kl_div(
        torch.log_softmax(student, dim=1), torch.log_softmax(teacher, dim=1), log_target=True, reduction="batchmean"
    )


def half_jeffreys(student: Tensor, teacher: Tensor) -> Tensor:
    """(KL(Q||P) + KL(P||Q)) / 2, symmetric and unbounded: the alignment of UniME-V2 as released (arXiv 2510.13515)."""
    return 0.5 * (kl(student, teacher) + kl(teacher, student))


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """(KL(P||M) + KL(Q||M)) / 2 with M the mean of both: symmetric, at most ln 2."""
    p, q = torch.log_softmax(student, dim=1), torch.log_softmax(teacher, dim=1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return 0.5 * (
        F.kl_div(middle, p, log_target=True, reduction="batchmean")
        + F.kl_div(middle, q, log_target=True, reduction="batchmean")
    )


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the margins between candidate 0 and every other, logits f32 [B, K] (arXiv 2010.02666)."""
    return F.mse_loss(student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:])


def ensemble(teachers: Tensor, scale: float, epsilon: float = 1e-6) -> Tensor:
    """Teacher logits f32 [B, K] from raw scores f32 [T, B, K] of T teachers, whatever their ranges.

    Each is min-max normalised over its list (equal scores give 0), the mean of all times `scale` (arXiv 2411.04403,
    heterogeneous ensemble; 30 in its fine-tuning).
    """
    low = teachers.amin(dim=2, keepdim=True)
    high = teachers.amax(dim=2, keepdim=True)
    return scale * ((teachers - low) / (high - low + epsilon)).mean(dim=0)
