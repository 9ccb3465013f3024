"""Hidden states of a batch's texts: computed with gradient where the backbone learns, remembered where it is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.batches import Tokenizer
from models.tower import Tower
from models.training.student import micro_batches


@dataclass(frozen=True, slots=True)
class States:
    """hidden f32 [N, L, W], ids and mask i64 [N, L]; padding has mask 0."""

    hidden: Tensor
    ids: Tensor
    mask: Tensor


class StateReader:
    """Texts to padded states. A frozen tower's states are kept in memory as f16, W * 2 bytes a token."""

    def __init__(self, tower: Tower, tokenizer: Tokenizer, micro_tokens: int) -> None:
        self._tower = tower
        self._tokenizer = tokenizer
        self._micro_tokens = micro_tokens
        self._frozen = not any(p.requires_grad for p in tower.parameters())
        self._kept: dict[tuple[str, int], Tensor] = {}

    def __call__(self, texts: Sequence[str], limit: int) -> States:
        """The states of all texts, cut to `limit` tokens, in their order."""
        ids = self._tokenizer(texts, limit).ids
        device = next(self._tower.parameters()).device
        matrices = self._remembered(texts, ids, limit) if self._frozen else self._computed(ids, limit)
        width = max(len(row) for row in ids)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        padded = torch.full((len(ids), width), self._tokenizer.pad_id, dtype=torch.long)
        for place, row in enumerate(ids):
            padded[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
        hidden = torch.nn.utils.rnn.pad_sequence([m.float() for m in matrices], batch_first=True)
        return States(hidden.to(device), padded.to(device), mask.to(device))

    def _remembered(self, texts: Sequence[str], ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        fresh = list({text: place for place, text in enumerate(texts) if (text, limit) not in self._kept}.values())
        with torch.no_grad():
            for place, matrix in zip(fresh, self._computed([ids[place] for place in fresh], limit), strict=True):
                self._kept[texts[place], limit] = matrix.to("cpu", torch.float16)
        return [self._kept[text, limit] for text in texts]

    def _computed(self, ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        out: list[Tensor] = [torch.empty(0)] * len(ids)
        device = next(self._tower.parameters()).device
        for rows, padded, mask in micro_batches(ids, limit, self._micro_tokens, self._tokenizer.pad_id):
            hidden = self._tower(padded.to(device), mask.to(device))
            for place, row in enumerate(rows):
                out[row] = hidden[place, : len(ids[row])]
        return out
