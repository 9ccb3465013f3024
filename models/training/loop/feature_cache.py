"""Features of a batch's texts: computed with gradient where the backbone learns, remembered where it is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.token_batches import Tokenizer
from chamfer.models.networks.transformer import MINI, Tower
from chamfer.models.training.loop.student import micro_batches


@dataclass(frozen=True, slots=True)
class States:
    """hidden f32 [N, L, W], ids and mask i64 [N, L]; padding has mask 0."""

    hidden: Tensor
    ids: Tensor
    mask: Tensor


class StateReader:
    """Texts to padded features. A frozen tower's are kept in memory as f16, 2 W bytes a token; those of words, which
    are a look-up, are never kept."""

    def __init__(self, tower: Tower, tokenizer: Tokenizer, micro_tokens: int) -> None:
        self._tower = tower
        self._tokenizer = tokenizer
        self._micro_tokens = micro_tokens
        self._frozen = not any(p.requires_grad for p in tower.parameters())
        self._words = tower.features[:1] == ("words",)
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._stored: dict[str, Tensor] = {}

    def store(self, vectors: Mapping[str, Tensor]) -> None:
        """Token vectors of `mini` by text, to be read instead of computed."""
        if self._tower.features not in ((MINI,), ("words", MINI)) or not self._frozen:
            raise InvalidInput(
                "stored states serve heads over a frozen mini; set features = ['mini'] or ['words', 'mini'], no adapter"
            )
        self._stored.update(vectors)

    def __call__(self, texts: Sequence[str], limit: int) -> States:
        """The features of all texts, cut to `limit` tokens, in their order."""
        ids = self._tokenizer(texts, limit).ids
        device = self._tower.vocabulary.device
        matrices = self._remembered(texts, ids, limit) if self._frozen else self._computed(ids, limit)
        mask = torch.zeros((len(ids), max(len(row) for row in ids)), dtype=torch.long)
        padded = torch.full_like(mask, self._tokenizer.pad_id)
        for place, row in enumerate(ids):
            padded[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
        hidden = torch.nn.utils.rnn.pad_sequence([m.float() for m in matrices], batch_first=True).to(device)
        if self._frozen and self._words:
            hidden = torch.cat([self._tower.words(padded.to(device)), hidden], dim=-1)
        return States(hidden, padded.to(device), mask.to(device))

    def _remembered(self, texts: Sequence[str], ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        for text, row in zip(texts, ids, strict=True):
            if text in self._stored and (text, limit) not in self._kept:
                whole = self._stored[text]  # cut as the tokenizer cuts: the closing token stays
                self._kept[text, limit] = whole if len(whole) <= len(row) else whole[[*range(len(row) - 1), -1]]
        fresh = list({text: place for place, text in enumerate(texts) if (text, limit) not in self._kept}.values())
        skipped = self._tower.widths[0] if self._words else 0
        with torch.no_grad():
            for place, matrix in zip(fresh, self._computed([ids[place] for place in fresh], limit), strict=True):
                self._kept[texts[place], limit] = matrix[:, skipped:].to("cpu", torch.float16)
        return [self._kept[text, limit] for text in texts]

    def _computed(self, ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        out: list[Tensor] = [torch.empty(0)] * len(ids)
        device = self._tower.vocabulary.device
        for rows, padded, mask in micro_batches(ids, limit, self._micro_tokens, self._tokenizer.pad_id):
            hidden = self._tower(padded.to(device), mask.to(device))
            for place, row in enumerate(rows):
                out[row] = hidden[place, : len(ids[row])]
        return out


def stored_states(folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, Tensor]:
    """Token vectors f16 by text out of SOURCE.npz files; ids are SOURCE/ID. Sources without a file are left out."""
    out: dict[str, Tensor] = {}
    for source in sorted({key.partition("/")[0] for key in documents}):
        path = folder / f"{source}.npz"
        if not path.is_file():
            continue
        with np.load(path) as file:
            if "tokens" not in file:
                continue
            for texts, names in (
                (documents, ("doc_ids", "tokens", "offsets")),
                (queries, ("query_ids", "q_tokens", "q_offsets")),
            ):
                keys, values, offsets = (file[name] for name in names)
                halves = torch.from_numpy(values.astype(np.float16, copy=False))
                for row, key in enumerate(keys.tolist()):
                    if (text := texts.get(f"{source}/{key}")) is not None:
                        out[text] = halves[int(offsets[row]) : int(offsets[row + 1])]
    return out
