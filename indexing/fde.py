"""Family `fde`: MUVERA's fixed dimensional encoding of a document's token vectors, scanned whole.

A cheap first stage for late interaction: ask it for more candidates than are wanted and let `multivector` score those
exactly. The matrices of the encoding, and the mean that is taken off all token vectors when `centred`, are drawn and
learnt once a collection and kept in its snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.artifact import ArrayStream
from chamfer.errors import Incompatible, InvalidInput
from chamfer.types import F32, Array, Bool, Candidates, Document, Encoding, TokenVectors, VectorKind
from indexing.family import Codec, SegmentPart
from indexing.kernels.fde import FdeMatrices, FdeShape, Projection, draw_matrices, encode_documents, encode_queries
from indexing.scanned import RowScan, merge_rows, pack_rows

_ARRAYS = ("planes", "projections", "final_slots", "final_signs", "centre")


@dataclass(frozen=True, kw_only=True)
class FdeConfig:
    """repetitions, k_sim, d_proj, projection, final_dim: the encoding (indexing.kernels.fde.FdeShape).

    fill      an empty cell of a document takes its nearest token
    centred   the mean of the sample's token vectors is taken off every token
    seed      of all draws
    storage   int8: a byte a dimension and one scale a document; float16: two bytes
    """

    repetitions: int = 20
    k_sim: int = 4
    d_proj: int = 8
    projection: Projection = "count_sketch"
    final_dim: int = 0
    fill: bool = True
    centred: bool = False
    seed: int = 1
    storage: Literal["int8", "float16"] = "int8"

    def __post_init__(self) -> None:
        self.shape()  # refuses what cannot be

    def shape(self) -> FdeShape:
        return FdeShape(self.repetitions, self.k_sim, self.d_proj, self.projection, self.final_dim)


class FdeFamily:
    """See indexing.family.Family. Arrays: values i8 or f16 [N, D]; for int8 scales f32 [N]."""

    name: ClassVar[str] = "fde"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS
    learns: ClassVar[bool] = True

    def __init__(self, config: FdeConfig, device: str = "cpu") -> None:
        self.config = config
        self._device = device
        self._codec: tuple[FdeMatrices, F32] | None = None

    def on_device(self, device: str) -> Self:
        out = type(self)(self.config, device)
        out._codec = self._codec
        return out

    def learn(self, encoding: Encoding | None) -> Codec:
        """Draws the matrices, and takes the mean of the token vectors."""
        if encoding is None or encoding.tokens is None:
            return {}  # an empty collection: there is nothing to encode
        tokens = encoding.tokens.values
        matrices = draw_matrices(self.config.shape(), tokens.shape[1], self.config.seed)
        centre = np.zeros(tokens.shape[1], dtype=np.float32)
        if self.config.centred and len(tokens):
            centre = tokens.astype(np.float64).mean(axis=0).astype(np.float32)
        return {
            "planes": matrices.planes,
            "projections": matrices.projections,
            "final_slots": matrices.final_slots,
            "final_signs": matrices.final_signs,
            "centre": centre,
        }

    def with_codec(self, codec: Codec) -> Self:
        out = type(self)(self.config, self._device)
        if codec:
            if missing := [name for name in _ARRAYS if name not in codec]:
                raise Incompatible(f"the fde channel's codec lacks {missing}; build the collection again")
            planes, projections, slots, signs, centre = (np.array(codec[name]) for name in _ARRAYS)
            out._codec = FdeMatrices(planes, projections, slots, signs), centre
        return out

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the fde channel needs token vectors from the encoder")
        values = self._encoded(encoding.tokens)
        return pack_rows(values, self.config.storage)

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return merge_rows(parts)

    def open(self, parts: Sequence[SegmentPart]) -> FdeRetriever:
        return FdeRetriever(parts, self.config, self._codec)

    def _encoded(self, tokens: TokenVectors) -> F32:
        matrices, centre = self._need_codec()
        shape, fill = self.config.shape(), self.config.fill
        values = _minus(tokens.values, centre)
        if self._device == "cpu":
            return encode_documents(values, tokens.offsets, matrices, shape, fill=fill)
        import torch

        from indexing.kernels import fde_torch

        moved, offsets = (torch.from_numpy(array).to(self._device) for array in (values, tokens.offsets))
        out: F32 = fde_torch.encode_documents(moved, offsets, matrices, shape, fill=fill).cpu().numpy()
        return out

    def _need_codec(self) -> tuple[FdeMatrices, F32]:
        if self._codec is None:
            raise InvalidInput("the fde channel has no codec yet; a collection learns it from its sample")
        return self._codec


class FdeRetriever:
    """Every row's inner product with the query's encoding; scores estimate repetitions times MaxSim."""

    def __init__(self, parts: Sequence[SegmentPart], config: FdeConfig, codec: tuple[FdeMatrices, F32] | None) -> None:
        self._rows = RowScan(parts)
        self._config = config
        self._codec = codec

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows a query."""
        encoded = None
        if self._codec is not None:
            matrices, centre = self._codec
            values = _minus(np.asarray(queries.values, dtype=np.float32), centre)
            encoded = encode_queries(values, queries.offsets, matrices, self._config.shape())
        return self._rows.search(len(queries), encoded, k, allowed)

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"an fde scan has no parameters, got {sorted(params)}")
        return self


def _minus(values: F32, centre: F32) -> F32:
    return values - centre if centre.any() else values
