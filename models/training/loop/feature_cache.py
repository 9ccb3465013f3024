"""Token features of a batch's texts: computed with gradient if the backbone is trained, cached if it is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.token_batches import Tokenizer
from chamfer.models.networks.features import MINI, WORDS
from chamfer.models.networks.transformer import Tower
from chamfer.models.training.loop.micro_batches import micro_batches


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """hidden f32 [N, L, W], ids and mask i64 [N, L]; padding has mask 0."""

    hidden: Tensor
    ids: Tensor
    mask: Tensor


class FeatureReader:
    """Texts to padded features.

    Features of a frozen tower are cached in memory as f16, 2 W bytes a token. The feature `words` is a look-up and is
    not cached.
    """

    def __init__(self, tower: Tower, tokenizer: Tokenizer, micro_tokens: int) -> None:
        self._tower = tower
        self._tokenizer = tokenizer
        self._micro_tokens = micro_tokens
        self._frozen = not any(p.requires_grad for p in tower.parameters())
        self._reads_words = tower.features[:1] == (WORDS,)
        self._cache: dict[tuple[str, int], Tensor] = {}
        self._stored: dict[str, Tensor] = {}

    def load_token_vectors(self, folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> None:
        """Token vectors of `mini` from SOURCE.npz files in a folder, which are then read instead of computed.

        InvalidInput unless the tower is a frozen mini with the features `mini`, or `words` and `mini`.
        """
        if self._tower.features not in ((MINI,), (WORDS, MINI)) or not self._frozen:
            raise InvalidInput(
                "data.token_vectors needs a head over a frozen mini; set features = ['mini'] or ['words', 'mini'] and "
                "leave adapter out"
            )
        self._stored.update(stored_token_vectors(folder, documents, queries))

    def __call__(self, texts: Sequence[str], limit: int) -> TokenFeatures:
        """The features of all texts, cut to `limit` tokens, in their order."""
        ids = self._tokenizer(texts, limit).ids
        device = self._tower.vocabulary.device
        matrices = self._cached(texts, ids, limit) if self._frozen else self._computed(ids, limit)
        mask = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
        padded = torch.full_like(mask, self._tokenizer.pad_id)
        for row, token_ids in enumerate(ids):
            padded[row, : len(token_ids)] = torch.tensor(token_ids, dtype=torch.long)
            mask[row, : len(token_ids)] = 1
        hidden = torch.nn.utils.rnn.pad_sequence([m.float() for m in matrices], batch_first=True).to(device)
        if self._frozen and self._reads_words:
            hidden = torch.cat([self._tower.words(padded.to(device)), hidden], dim=-1)
        return TokenFeatures(hidden, padded.to(device), mask.to(device))

    def _cached(self, texts: Sequence[str], ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        for text, token_ids in zip(texts, ids, strict=True):
            if text in self._stored and (text, limit) not in self._cache:
                whole, n = self._stored[text], len(token_ids)  # truncated as the tokenizer does, keeping the last token
                self._cache[text, limit] = whole if len(whole) <= n else whole[[*range(n - 1), -1]]
        missing = list({text: row for row, text in enumerate(texts) if (text, limit) not in self._cache}.values())
        skipped = self._tower.widths[0] if self._reads_words else 0
        with torch.no_grad():
            for row, matrix in zip(missing, self._computed([ids[row] for row in missing], limit), strict=True):
                self._cache[texts[row], limit] = matrix[:, skipped:].to("cpu", torch.float16)
        return [self._cache[text, limit] for text in texts]

    def _computed(self, ids: Sequence[list[int]], limit: int) -> list[Tensor]:
        matrices: list[Tensor] = [torch.empty(0)] * len(ids)
        device = self._tower.vocabulary.device
        for rows, padded, mask in micro_batches(ids, limit, self._micro_tokens, self._tokenizer.pad_id):
            hidden = self._tower(padded.to(device), mask.to(device))
            for states, row in zip(hidden, rows, strict=True):
                matrices[row] = states[: len(ids[row])]
        return matrices


def stored_token_vectors(folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, Tensor]:
    """Token vectors f16 by text from SOURCE.npz files; ids are SOURCE/ID. Sources without a file are skipped."""
    vectors: dict[str, Tensor] = {}
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
                ids, values, offsets = (file[name] for name in names)
                halves = torch.from_numpy(values.astype(np.float16, copy=False))
                for row, text_id in enumerate(ids.tolist()):
                    if (text := texts.get(f"{source}/{text_id}")) is not None:
                        vectors[text] = halves[int(offsets[row]) : int(offsets[row + 1])]
    return vectors
