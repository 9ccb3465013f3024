"""Texts of a step in micro-batches of similar length, and their outputs back in the order of the texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chamfer.models.backends.token_batches import length_groups


def micro_batches(
    ids: Sequence[Sequence[int]], limit: int, budget: int, pad_id: int
) -> list[tuple[list[int], Tensor, Tensor]]:
    """(rows, ids i64 [b, L], mask i64 [b, L]) covering all rows, at most `budget` padded tokens each."""
    batches = []
    for width, rows in length_groups([len(row) for row in ids], limit=limit, budget=budget):
        padded = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            padded[line, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.long)
            mask[line, : len(ids[row])] = 1
        batches.append((rows, padded, mask))
    return batches


def in_order(parts: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """The outputs [b, ...] of micro-batches as one tensor [N, ...]; rows[i] are the rows of parts[i]."""
    order = torch.tensor([row for batch_rows in rows for row in batch_rows])
    joined = torch.cat(list(parts))
    return joined[torch.argsort(order).to(joined.device)]
