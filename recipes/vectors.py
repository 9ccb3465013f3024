"""Texts to vectors in one pass of `mini-384`: blocks that a killed run finds again, and what is made of them.

A block keeps what the pass gave: dense vectors, and the raw token vectors, which teach. The 128 dimensions that heads
learn from are those of `mini`, by its projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chamfer.core.artifact import digest_of, find_artifact, open_artifact, write_artifact
from chamfer.core.protocols import Encoder
from chamfer.core.types import F32, I64, Array, Document, TokenVectors, VectorKind, join_offsets
from chamfer.indexing.kernels.maxsim import maxsim_rows
from chamfer.models.encoders.mini import normalised
from chamfer.models.encoders.mini_projection import load_projection

BLOCK = 1024  # texts: at most 200 MB of raw token vectors, and a minute and a half of one core
_KIND = "raw-vectors"


@dataclass(frozen=True, slots=True)
class Encoded:
    """dense f32 [N, D], and raw token vectors f16 of `BLOCK` texts each (the last may have fewer), mapped from disk."""

    dense: F32
    blocks: Sequence[TokenVectors]

    def tokens(self, row: int) -> F32:
        """Raw token vectors f32 [T, D] of one text."""
        block, place = self.blocks[row // BLOCK], row % BLOCK
        return block.values[block.offsets[place] : block.offsets[place + 1]].astype(np.float32)

    def maxsim(self, query: F32, rows: Sequence[int]) -> F32:
        """Exact MaxSim f32 [K] of query tokens f32 [Tq, D] with the texts of these rows."""
        places = np.asarray(rows, dtype=np.int64)
        out = np.empty(len(places), dtype=np.float32)
        for number in np.unique(places // BLOCK):
            inside = places // BLOCK == number
            block = self.blocks[number]
            out[inside] = maxsim_rows(query, block.values, block.offsets, places[inside] % BLOCK)
        return out

    def projected(self) -> tuple[Array, I64]:
        """(token vectors f16 [T, 128] as `mini` gives them, offsets i64 [N + 1])."""
        projection, _ = load_projection()
        values = [normalised(b.values.astype(np.float32) @ projection).astype(np.float16) for b in self.blocks]
        return np.concatenate(values), join_offsets([block.offsets for block in self.blocks])


def encoded(encoder: Encoder, texts: Sequence[str], folder: Path) -> Encoded:
    """Encodes texts (one or more) block by block into `folder`; a block that is there is not made again.

    It is found by its texts and the encoder's fingerprint. Queries go the same way: `mini` reads both sides alike.
    """
    dense, blocks = [], []
    for start in range(0, len(texts), BLOCK):
        part = texts[start : start + BLOCK]
        path = folder / digest_of(encoder.spec.fingerprint, part)[:40]
        if find_artifact(path, _KIND) is None:
            _write(path, encoder, part)
        block = open_artifact(path, _KIND)
        dense.append(np.asarray(block.array("dense"), dtype=np.float32))
        blocks.append(TokenVectors(block.array("tokens"), np.array(block.array("offsets"))))
    return Encoded(np.concatenate(dense), blocks)


def _write(path: Path, encoder: Encoder, texts: Sequence[str]) -> None:
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    encoding = encoder.encode_documents(documents, (VectorKind.DENSE, VectorKind.TOKENS))
    assert encoding.dense is not None
    assert encoding.tokens is not None
    with write_artifact(path, _KIND, {}) as writer:
        writer.add_array("dense", encoding.dense.values)
        writer.add_array("tokens", encoding.tokens.values.astype(np.float16))
        writer.add_array("offsets", encoding.tokens.offsets)
