"""The loss of a language model that answers with one token: yes or no, or the number of a candidate (UniME-V2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def answer(logits: Tensor, right: Sequence[Sequence[int]], among: Sequence[Sequence[int]] | None = None) -> Tensor:
    """-log p(one of the right tokens) f32 [B] of logits f32 [B, V], p over the tokens `among` (None: all of them).

    Among yes and no it is softplus of minus the log-odds, which is what the reranker's score is; among all tokens it is
    the language model's own loss, as UniME-V2 trains (arXiv 2510.13515). Spellings of one answer add up.
    """
    whole = logits if among is None else logits.masked_fill(~_marked(among, logits), float("-inf"))
    wanted = logits.masked_fill(~_marked(right, logits), float("-inf"))
    return torch.logsumexp(whole, dim=1) - torch.logsumexp(wanted, dim=1)


def _marked(tokens: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    marks = torch.zeros(logits.shape, dtype=torch.bool)
    for row, own in enumerate(tokens):
        marks[row, list(own)] = True
    return marks.to(logits.device)
