"""Our own trained cross-encoders as a reranker: one graph from joined token ids to scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads import CrossHead
from models.tower import Tower


class CrossModule(nn.Module):
    """(ids, mask) i64 [B, L] of [CLS] query [SEP] document [SEP] -> scores [B]. Segments are read off the separators."""

    def __init__(self, tower: Tower, head: CrossHead, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.register_buffer("special_ids", torch.tensor(special_ids), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        special = (ids[:, :, None] == self.special_ids).any(dim=-1) & (mask > 0)
        closed = (special.long().cumsum(dim=1) - special.long()) - 1  # separators before, the opening token not counted
        segments = (closed > 0).long() * mask
        hidden = self.tower(ids, mask, segments)
        scores: Tensor = self.head(hidden, ids, mask, segments, special)
        return scores
