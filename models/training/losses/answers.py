"""The loss of a chat model that answers with one token: yes or no, or the number of a candidate (UniME-V2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def answer_loss(
    logits: Tensor, right: Sequence[Sequence[int]], possible: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """-log p(any of the right tokens), f32 [B], of logits f32 [B, V]; p is over the `possible` tokens (None: all).

    Over yes and no it is softplus of minus the log-odds, which is the reranker's score; over all tokens it is the
    language-model loss with which UniME-V2 trains (arXiv 2510.13515). Spellings of one answer are added up.
    """
    whole = logits if possible is None else logits.masked_fill(~_marked(possible, logits), float("-inf"))
    answered = logits.masked_fill(~_marked(right, logits), float("-inf"))
    return torch.logsumexp(whole, dim=1) - torch.logsumexp(answered, dim=1)


def _marked(tokens: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    marks = torch.zeros(logits.shape, dtype=torch.bool)
    for row, ids in enumerate(tokens):
        marks[row, list(ids)] = True
    return marks.to(logits.device)
