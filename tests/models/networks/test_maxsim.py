"""Differentiable MaxSim: by hand, against the index's kernel, and its gradient."""

from __future__ import annotations

import numpy as np
import torch

from chamfer.indexing.kernels.maxsim import maxsim_plain, maxsim_rows
from chamfer.models.networks.maxsim import maxsim


def test_maxsim_of_two_tokens_is_the_sum_of_the_best_products() -> None:
    queries = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    documents = torch.tensor([[[3.0, 1.0], [1.0, 4.0]]])
    ones = torch.ones(1, 2, dtype=torch.bool)
    assert maxsim(queries, ones, documents, ones).item() == 3.0 + 8.0


def test_maxsim_of_an_empty_document_is_zero() -> None:
    queries = torch.randn(1, 3, 4)
    none = torch.zeros(1, 2, dtype=torch.bool)
    assert maxsim(queries, torch.ones(1, 3, dtype=torch.bool), torch.randn(1, 2, 4), none).item() == 0.0


def test_training_and_search_compute_the_same_scores() -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 1, 0, 5]
    values = rng.standard_normal((sum(lengths), 8)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    query = rng.standard_normal((4, 8)).astype(np.float32)
    padded = torch.zeros(4, 5, 8)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    for i, n in enumerate(lengths):
        padded[i, :n] = torch.from_numpy(values[offsets[i] : offsets[i + 1]])
        mask[i, :n] = True
    trained = maxsim(torch.from_numpy(query)[None], torch.ones(1, 4, dtype=torch.bool), padded, mask)[0].numpy()
    rows = np.arange(4, dtype=np.int64)
    np.testing.assert_allclose(maxsim_rows(query, values, offsets, rows), trained, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(maxsim_plain(query, values, offsets, rows), trained, rtol=1e-5, atol=1e-5)


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(1)
    queries = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    query_mask = torch.tensor([[True, True, True], [True, True, False]])
    document_mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    assert torch.autograd.gradcheck(lambda q, d: maxsim(q, query_mask, d, document_mask), (queries, documents))
