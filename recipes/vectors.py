"""Vectors of texts from one pass of `mini-384`, stored in blocks that an interrupted run reuses.

A block holds dense vectors and raw token vectors. The raw ones score MaxSim as a teacher; their 128-dimensional
projections, those of `mini`, are what heads learn from.
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
from chamfer.models.networks.projection import load_projection

BLOCK = 1024  # texts: at most 200 MB of raw token vectors, encoded in about 90 seconds of one core
_KIND = "raw-vectors"


@dataclass(frozen=True, slots=True)
class Encoded:
    """dense f32 [N, D]; raw token vectors f16 in memory-mapped blocks of `BLOCK` texts (the last may be shorter)."""

    dense: F32
    blocks: Sequence[TokenVectors]

    def tokens(self, row: int) -> F32:
        """Raw token vectors f32 [T, D] of one text."""
        block, inside = self.blocks[row // BLOCK], row % BLOCK
        return block.values[block.offsets[inside] : block.offsets[inside + 1]].astype(np.float32)

    def maxsim(self, query: F32, rows: Sequence[int]) -> F32:
        """Exact MaxSim f32 [K] of query tokens f32 [Tq, D] with the texts of these rows."""
        all_rows = np.asarray(rows, dtype=np.int64)
        scores = np.empty(len(all_rows), dtype=np.float32)
        for number in np.unique(all_rows // BLOCK):
            members = all_rows // BLOCK == number
            block = self.blocks[number]
            scores[members] = maxsim_rows(query, block.values, block.offsets, all_rows[members] % BLOCK)
        return scores

    def projected(self) -> tuple[Array, I64]:
        """(token vectors f16 [T, 128] of the encoder `mini`, offsets i64 [N + 1])."""
        projection, _ = load_projection()
        values = [normalised(b.values.astype(np.float32) @ projection).astype(np.float16) for b in self.blocks]
        return np.concatenate(values), join_offsets([block.offsets for block in self.blocks])


def encoded(encoder: Encoder, texts: Sequence[str], folder: Path) -> Encoded:
    """Encodes one or more texts block by block into `folder`; existing blocks are reused.

    A block is identified by its texts and the encoder's fingerprint. Queries are encoded as documents, which `mini`
    does not distinguish.
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
