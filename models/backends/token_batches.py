"""Texts to padded batches of token ids: sorted by length, bounded by a token budget, lengths rounded up.

Padded lengths are multiples of `STEP`, so that a text is padded the same way in any batch and few shapes occur:
with a backbone whose rows do not mix, a text's vectors then have the same bits whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.types import I32, I64, Bool

STEP = 16


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N texts after truncation, and their lengths before (specials included): n_tokens i32 [N]."""

    ids: list[list[int]]
    n_tokens: I32
    truncated: Bool


@dataclass(frozen=True, slots=True)
class Batch:
    """rows: which texts; ids and mask i64 [B, L]; lengths: real tokens of each."""

    rows: list[int]
    ids: I64
    mask: I64
    lengths: list[int]


class Tokenizer:
    """A `tokenizer.json`, cut to a limit that keeps the closing special token."""

    def __init__(self, path: Path, pad_id: int = 0) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer: Any = FastTokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pad_id = pad_id
        self.special_ids = sorted(set(self._tokenizer.encode("").ids))  # what frames a text

    def __call__(self, texts: Sequence[str], limit: int) -> Tokens:
        encodings = self._tokenizer.encode_batch_fast([clean(text) for text in texts])
        ids = [encoding.ids for encoding in encodings]
        n_tokens = np.array([len(i) for i in ids], dtype=np.int32)
        kept = [i if len(i) <= limit else [*i[: limit - 1], i[-1]] for i in ids]
        kept = [i or [self.pad_id] for i in kept]  # a tokenizer without a frame: an empty text still has a vector
        return Tokens(kept, n_tokens, n_tokens > limit)

    def starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text, not cut, and the place of each one's first character, -1 for those that frame it."""
        encoding = self._tokenizer.encode(clean(text))
        frames = encoding.special_tokens_mask
        return encoding.ids, [-1 if f else o[0] for o, f in zip(encoding.offsets, frames, strict=True)]


def clean(text: str) -> str:
    """The text without lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def padded_length(length: int, limit: int) -> int:
    """The next multiple of STEP, at most the limit."""
    return min(-(-max(length, 1) // STEP) * STEP, max(limit, length))


def length_groups(lengths: Sequence[int], *, limit: int, budget: int) -> Iterator[tuple[int, list[int]]]:
    """(padded length, rows) of texts that share a padded length, longest first, at most `budget` padded tokens."""
    widths = [padded_length(length, limit) for length in lengths]
    order = sorted(range(len(widths)), key=lambda row: (-widths[row], row))
    start = 0
    while start < len(order):
        width = widths[order[start]]
        most = start + max(1, budget // width)
        stop = start
        while stop < min(len(order), most) and widths[order[stop]] == width:
            stop += 1
        yield width, order[start:stop]
        start = stop


def token_batches(tokens: Tokens, *, limit: int, budget: int, pad_id: int) -> Iterator[Batch]:
    """Padded batches of all texts."""
    for width, rows in length_groups([len(ids) for ids in tokens.ids], limit=limit, budget=budget):
        yield _pad([tokens.ids[row] for row in rows], rows, width, pad_id)


def _pad(ids: list[list[int]], rows: list[int], width: int, pad_id: int) -> Batch:
    out = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for place, row in enumerate(ids):
        out[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return Batch(rows, out, mask, [len(row) for row in ids])
