"""Differentiable MaxSim, for training. The fast one of the index is in indexing/kernels; a test compares the two."""

from __future__ import annotations

import torch


def maxsim(
    queries: torch.Tensor, query_mask: torch.Tensor, documents: torch.Tensor, document_mask: torch.Tensor
) -> torch.Tensor:
    """Chamfer similarity of every query with every document: the sum over query tokens of the best inner product.

    queries [Q, Tq, D], documents [N, Td, D], masks bool [Q, Tq] and [N, Td] -> scores [Q, N]
    (Khattab and Zaharia, SIGIR 2020, eq. 3). A document without tokens scores 0. Cost Q N Tq Td D.
    """
    products = torch.einsum("qsd,ntd->qnst", queries, documents)
    products = products.masked_fill(~document_mask[None, :, None, :], float("-inf"))
    best = products.amax(dim=-1)
    best = torch.where(torch.isfinite(best), best, torch.zeros_like(best))
    return torch.where(query_mask[:, None, :], best, torch.zeros_like(best)).sum(dim=-1)
