"""Contrastive losses: InfoNCE with masks, focal weights, Matryoshka prefixes, mixed hard negatives, frozen banks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def infonce(scores: Tensor, positives: Tensor, allowed: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """-(1-p)^gamma log p of the positive, p = softmax of scores f32 [B, N] at positives i64 [B].

    Documents where `allowed` bool [B, N] is False are left out of the denominator (duplicates of the positive, other
    relevant documents); the positive itself always stays. gamma above 0 is KaLM-V2's focal weight (arXiv 2506.20923),
    computed from log(1-p) = LSE(negatives) - LSE(all) and detached, which stays finite where p rounds to 1.
    """
    positive = F.one_hot(positives, scores.shape[1]).bool()
    if allowed is not None:
        scores = scores.masked_fill(~(allowed | positive), float("-inf"))
    total = torch.logsumexp(scores, dim=1)
    losses = total - scores.gather(1, positives[:, None]).squeeze(1)
    if gamma > 0:
        losses = focal_weights(scores, positive, gamma) * losses
    return losses.mean()


def focal_weights(scores: Tensor, positive: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma f32 [B] of scores [B, N], positive bool [B, N] marking the positives; no gradient."""
    with torch.no_grad():
        rest = torch.logsumexp(scores.masked_fill(positive, float("-inf")), dim=1)
        return torch.exp(gamma * (rest - torch.logsumexp(scores, dim=1)).clamp(max=0.0))


def matryoshka(
    queries: Tensor,
    documents: Tensor,
    dims: Sequence[int],
    weights: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """sum_i weights_i loss(first dims_i dimensions of both, each normalised again); vectors [B, D] and [N, D]."""
    total = queries.new_zeros(())
    for dim, weight in zip(dims, weights, strict=True):
        total = total + weight * loss(unit(queries[:, :dim]), unit(documents[:, :dim]))
    return total


def mix_pairs(negatives: Tensor, first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """normalise(lam a + (1-lam) b) of negatives f32 [B, M, D] (KaLM-V2), detached: f32 [B, P, D].

    first, second i64 [B, P] are the indices of a and b, shares f32 [B, P] are lam. A mix of unit vectors with cosine c
    is closer to whatever both are close to, by 1 / sqrt(1 - 2 lam (1-lam) (1-c)).
    """
    negatives = negatives.detach()

    def parents(indices: Tensor) -> Tensor:
        return negatives.gather(1, indices[:, :, None].expand(-1, -1, negatives.shape[2]))

    return unit(shares[:, :, None] * parents(first) + (1 - shares[:, :, None]) * parents(second))


def mix_list(queries: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """normalise(sum_k softmax_k(q.n_k / temperature) n_k), queries [B, D], negatives [B, M, D], detached: [B, 1, D]."""
    queries, negatives = queries.detach(), negatives.detach()
    shares = torch.softmax(torch.einsum("bd,bmd->bm", queries, negatives) / temperature, dim=1)
    return unit(torch.einsum("bm,bmd->bd", shares, negatives))[:, None]


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their L2 norm."""
    return F.normalize(vectors, dim=-1)


def not_relevant(columns: Sequence[str], relevant: Sequence[set[str]]) -> Tensor:
    """bool [B, N]: False where document n is relevant to query b, which would make it a false negative."""
    return torch.tensor([[doc_id not in excluded for doc_id in columns] for excluded in relevant])
