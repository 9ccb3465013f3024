"""Token pooling inside the forward pass (CRISP, arXiv 2505.11471): assignments without gradient, means with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chamfer.models.networks.token_pooling import Pooling, labels_of


def pool_batch(
    vectors: Tensor, mask: Tensor, rule: Pooling, *, normalised: bool = False, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors f32 [N, L, D] with mask [N, L] -> (pooled f32 [N, m, D], mask bool [N, m]).

    Each text's vectors equal those of chamfer.models.networks.token_pooling.pool_one. Clusters are assigned on detached
    values; the mean of each cluster is differentiable: d mean / d token = I / n for its n tokens. Padding is in no
    cluster. `normalised` is that of token_pooling.means. weights f32 [N, L] > 0 get a gradient through the means.
    """
    lengths = mask.sum(dim=1).tolist()
    values = vectors.detach().float().cpu().numpy()
    detached = None if weights is None else weights.detach().float().cpu().numpy()
    members = [
        _membership(values[row, :length], rule, None if detached is None else detached[row, :length])
        for row, length in enumerate(lengths)
    ]
    n_pooled = max((len(member) for member in members), default=0)
    padded = np.zeros((len(members), n_pooled, vectors.shape[1]), dtype=np.float32)
    real = np.zeros((len(members), n_pooled), dtype=bool)
    for row, member in enumerate(members):
        padded[row, : len(member), : member.shape[1]] = member
        real[row, : len(member)] = True
    shares = torch.from_numpy(padded).to(vectors.device, vectors.dtype)
    if weights is not None:
        shares = shares * weights[:, None, :]
    shares = shares / shares.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    pooled = shares @ vectors
    if normalised:
        pooled = torch.nn.functional.normalize(pooled, dim=-1) * (shares @ vectors.norm(dim=-1, keepdim=True))
    return pooled, torch.from_numpy(real).to(vectors.device)


def _membership(tokens: np.ndarray, rule: Pooling, weights: np.ndarray | None) -> np.ndarray:
    """f32 [m, L] of 0 and 1: whether each token of a text belongs to each of its pooled vectors."""
    labels = labels_of(np.ascontiguousarray(tokens), rule, weights)
    if labels is None:
        return np.eye(len(tokens), dtype=np.float32)
    member: np.ndarray = np.equal.outer(np.arange(labels.max() + 1), labels).astype(np.float32)
    return member
