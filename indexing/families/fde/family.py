"""Family `fde`: MUVERA's fixed dimensional encoding of a document's token vectors, as a cheap first stage.

Request more candidates than needed, and let `multivector` score them exactly. A collection's codec holds the
matrices of the encoding, the mean that is subtracted from all token vectors if `centred`, and what the storage learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import F32, I64, Array, Document, Encoding, VectorKind
from chamfer.indexing.families.family import check_finite
from chamfer.indexing.families.fde.encoder import NAME, FdeConfig, FdeEncoder
from chamfer.indexing.families.fde.search import INDEX, FdeRetriever, row_arrays
from chamfer.indexing.kernels.fde import FdeMatrices, draw_matrices
from chamfer.indexing.rows.ann_index import MIN_INDEXED_ROWS, build_index
from chamfer.indexing.rows.merge import merge_rows
from chamfer.indexing.rows.segment_part import Codec, SegmentPart
from chamfer.indexing.rows.storage.protocol import Storage
from chamfer.indexing.rows.storage.registry import STORAGES

_BLOCK_BYTES = 32 << 20
_SAMPLE_BYTES = 512 << 20
_SAMPLE_ROWS = 100_000  # as in the paper
_DRAWN = ("planes", "projections", "final_slots", "final_signs", "centre")
_NOT_ZERO = np.ones(1, dtype=bool)


class FdeFamily:
    """See chamfer.indexing.families.family.Family.

    Arrays: those of the storage; with hnsw or ivf also `index`, the serialised faiss index.
    """

    name: ClassVar[str] = NAME
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS
    learns: ClassVar[bool] = True

    def __init__(self, config: FdeConfig, device: str = "cpu") -> None:
        self.config = config
        self._device = device
        self._storage: Storage = STORAGES[config.storage]
        self._codec: Codec = {}
        self._encoder: FdeEncoder | None = None

    def on_device(self, device: str) -> Self:
        return type(self)(self.config, device).with_codec(self._codec)

    def learn(self, encoding: Encoding | None) -> Codec:
        """Draws the matrices, takes the mean of the token vectors, and trains the storage on the sample's documents."""
        if encoding is None or encoding.tokens is None:
            return {}  # an empty collection: there is nothing to encode
        tokens, config = encoding.tokens, self.config
        check_finite(tokens.values, "document")
        matrices = draw_matrices(config.shape(), tokens.dim, config.seed)
        centre = np.zeros(tokens.dim, dtype=np.float32)
        if config.centred and len(tokens.values):
            centre = tokens.values.astype(np.float64).mean(axis=0).astype(np.float32)
        encoder = FdeEncoder(matrices, centre, config, self._device)
        n_sample = min(len(tokens), _SAMPLE_ROWS, max(1, _SAMPLE_BYTES // (4 * config.shape().dim)))
        sample = np.zeros((1, config.shape().dim), dtype=np.float32)
        if len(tokens):
            sample = encoder.documents(tokens.take(np.linspace(0, len(tokens) - 1, n_sample).astype(np.int64)))
        return {
            "planes": matrices.planes,
            "projections": matrices.projections,
            "final_slots": matrices.final_slots,
            "final_signs": matrices.final_signs,
            "centre": centre,
            **self._storage.learn(sample, config.repetitions, config.seed),
        }

    def with_codec(self, codec: Codec) -> Self:
        family = type(self)(self.config, self._device)
        if codec:
            if missing := [name for name in _DRAWN if name not in codec]:
                raise Incompatible(f"the fde channel's codec lacks {missing}; build the collection again")
            family._codec = {name: np.array(array) for name, array in codec.items()}
            planes, projections, slots, signs, centre = (family._codec[name] for name in _DRAWN)
            family._encoder = FdeEncoder(
                FdeMatrices(planes, projections, slots, signs), centre, self.config, self._device
            )
        return family

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the fde channel needs token vectors from the encoder")
        if self._encoder is None:
            raise InvalidInput("the fde channel has no codec yet; a collection learns it from its sample")
        if len(encoding.tokens.values) and not self._codec.get("centroids", _NOT_ZERO).any():
            raise InvalidInput(
                f"the fde channel's {self.config.storage} codebooks were learnt from a sample without a token; build "
                "the collection again with documents that have some, or set fde.storage to int8"
            )
        tokens, step = encoding.tokens, max(1, _BLOCK_BYTES // (4 * self.config.shape().dim))
        blocks = [
            self._storage.pack(
                self._encoder.documents(tokens.take(range(at, min(at + step, len(tokens))))), self._codec
            )
            for at in range(0, max(len(tokens), 1), step)
        ]
        arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        return {**arrays, **self._index([SegmentPart(arrays, None, len(tokens))])}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return {**merge_rows(parts, row_arrays(parts)), **self._index(parts)}

    def open(self, parts: Sequence[SegmentPart]) -> FdeRetriever:
        return FdeRetriever(parts, self.config, self._codec, self._encoder)

    def _index(self, parts: Sequence[SegmentPart]) -> dict[str, Array]:
        """The index over the live rows, if the configuration has one and there are enough rows."""
        n_rows = sum(part.n_live for part in parts)
        kind = self.config.search
        if kind == "flat" or n_rows < MIN_INDEXED_ROWS:
            return {}
        step = max(1, _BLOCK_BYTES // (4 * self.config.shape().dim))
        blocks = [(part, rows) for part in parts for rows in part.live_blocks(1, step)]
        sample = np.concatenate(
            [self._unpacked(part, rows) for part, rows in blocks[: max(1, _SAMPLE_BYTES // _BLOCK_BYTES)]]
        )
        values = (self._unpacked(part, rows) for part, rows in blocks)
        return {INDEX: build_index(kind, values, sample, self.config.seed)}

    def _unpacked(self, part: SegmentPart, rows: I64) -> F32:
        arrays = {name: part.arrays[name][rows] for name in row_arrays([part])}
        return self._storage.unpack(arrays, self._codec)
