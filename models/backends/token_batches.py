"""Tokenisation, and padded batches of token ids: sorted by length, bounded by a token budget.

Padded lengths are multiples of `STEP`, so that a text is padded the same way in every batch and few shapes occur. With
a backbone that does not mix rows, the vectors of a text then have the same bits whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.types import I32, I64, Bool

STEP = 16
# A tokenizer reads its whole text before it truncates. A text is therefore first cut at so many characters
# for each token of the limit, more than tokens have in any language; this saves seconds on texts of megabytes.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N texts after truncation; n_tokens i32 [N] are the lengths before it, special tokens included."""

    ids: list[list[int]]
    n_tokens: I32
    truncated: Bool


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts, given by row: ids and mask i64 [B, L], and the number of real tokens of each."""

    rows: list[int]
    ids: I64
    mask: I64
    lengths: list[int]


class Tokenizer:
    """A `tokenizer.json`; truncation keeps the closing special token."""

    def __init__(self, path: Path, pad_id: int = 0) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer: Any = FastTokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pad_id = pad_id
        self.special_ids = sorted(set(self._tokenizer.encode("").ids))  # those around every text

    def __call__(self, texts: Sequence[str], limit: int) -> Tokens:
        encodings = self._tokenizer.encode_batch_fast([clean(text) for text in texts])
        ids = [encoding.ids for encoding in encodings]
        n_tokens = np.array([len(i) for i in ids], dtype=np.int32)
        truncated = [i if len(i) <= limit else [*i[: limit - 1], i[-1]] for i in ids]
        truncated = [i or [self.pad_id] for i in truncated]  # without special tokens an empty text still needs a vector
        return Tokens(truncated, n_tokens, n_tokens > limit)

    def starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a whole text, and the offset of the first character of each; -1 for special tokens."""
        encoding = self._tokenizer.encode(clean(text))
        special = encoding.special_tokens_mask
        return encoding.ids, [-1 if s else o[0] for o, s in zip(encoding.offsets, special, strict=True)]


def clean(text: str) -> str:
    """The text without lone surrogates, which tokenizers reject."""
    return text.encode("utf-8", "replace").decode("utf-8")


def padded_length(length: int, limit: int) -> int:
    """The next multiple of STEP, at most the limit."""
    return min(-(-max(length, 1) // STEP) * STEP, max(limit, length))


def length_groups(lengths: Sequence[int], *, limit: int, budget: int) -> Iterator[tuple[int, list[int]]]:
    """(padded length, rows) of texts with equal padded length, longest first, at most `budget` padded tokens each."""
    widths = [padded_length(length, limit) for length in lengths]
    order = sorted(range(len(widths)), key=lambda row: (-widths[row], row))
    start = 0
    while start < len(order):
        width = widths[order[start]]
        end = min(len(order), start + max(1, budget // width))
        stop = start
        while stop < end and widths[order[stop]] == width:
            stop += 1
        yield width, order[start:stop]
        start = stop


def token_batches(tokens: Tokens, *, limit: int, budget: int, pad_id: int) -> Iterator[Batch]:
    """Padded batches of all texts."""
    for width, rows in length_groups([len(ids) for ids in tokens.ids], limit=limit, budget=budget):
        yield _pad([tokens.ids[row] for row in rows], rows, width, pad_id)


def _pad(ids: list[list[int]], rows: list[int], width: int, pad_id: int) -> Batch:
    padded = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for line, text_ids in enumerate(ids):
        padded[line, : len(text_ids)] = text_ids
        mask[line, : len(text_ids)] = 1
    return Batch(rows, padded, mask, [len(text_ids) for text_ids in ids])
