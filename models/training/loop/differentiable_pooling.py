"""CRISP inside the forward pass (arXiv 2505.11471): assignments without gradient, means with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chamfer.models.networks.token_pooling import Pooling, labels_of


def pool_batch(
    vectors: Tensor, mask: Tensor, rule: Pooling, *, normalised: bool = False, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors f32 [N, L, D] with mask [N, L] -> (pooled f32 [N, m, D], mask bool [N, m]).

    Row by row the same vectors as chamfer.models.networks.token_pooling.pool_one: k-means runs on detached values,
    then the mean of each cluster is taken of the tokens themselves: d mean / d token = I / n of its cluster. Padding
    is in no cluster. normalised: as chamfer.models.networks.token_pooling.means does it. weights f32 [N, L] > 0, which
    get a gradient by the means.
    """
    lengths = mask.sum(dim=1).tolist()
    values = vectors.detach().float().cpu().numpy()
    counts = None if weights is None else weights.detach().float().cpu().numpy()
    members = [
        _membership(values[row, :length], rule, None if counts is None else counts[row, :length])
        for row, length in enumerate(lengths)
    ]
    most = max((len(member) for member in members), default=0)
    member = np.zeros((len(members), most, vectors.shape[1]), dtype=np.float32)
    real = np.zeros((len(members), most), dtype=bool)
    for row, own in enumerate(members):
        member[row, : len(own), : own.shape[1]] = own
        real[row, : len(own)] = True
    shares = torch.from_numpy(member).to(vectors.device, vectors.dtype)
    if weights is not None:
        shares = shares * weights[:, None, :]
    shares = shares / shares.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    pooled = shares @ vectors
    if normalised:
        pooled = torch.nn.functional.normalize(pooled, dim=-1) * (shares @ vectors.norm(dim=-1, keepdim=True))
    return pooled, torch.from_numpy(real).to(vectors.device)


def _membership(tokens: np.ndarray, rule: Pooling, weights: np.ndarray | None) -> np.ndarray:
    """Which of one text's tokens are in each of its pooled vectors: f32 [m, L] of 0 and 1."""
    labels = labels_of(np.ascontiguousarray(tokens), rule, weights)
    if labels is None:
        return np.eye(len(tokens), dtype=np.float32)
    member: np.ndarray = np.equal.outer(np.arange(labels.max() + 1), labels).astype(np.float32)
    return member
