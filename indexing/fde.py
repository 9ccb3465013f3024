"""Family `fde`: MUVERA's fixed dimensional encoding of a document's token vectors, scanned whole.

A cheap first stage for late interaction: ask it for more candidates than are wanted and let `multivector` score those
exactly. The matrices of the encoding, and the mean that is taken off all token vectors when `centred`, are drawn and
learnt once a collection and kept in its snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.artifact import ArrayStream
from chamfer.errors import Incompatible, InvalidInput
from chamfer.types import F32, I64, Array, Bool, Candidates, Document, Encoding, TokenVectors, VectorKind
from indexing.family import Codec, OnCpu, SegmentPart, allowed_rows, starts_of
from indexing.kernels.fde import FdeMatrices, FdeShape, Projection, draw_matrices, encode_documents, encode_queries
from indexing.kernels.scan import quantise_rows, scan_half, scan_int8
from indexing.kernels.topk import as_candidates, best, check_depth

_BLOCK_BYTES = 32 << 20
_ARRAYS = ("planes", "projections", "final_slots", "final_signs", "centre")


@dataclass(frozen=True, kw_only=True)
class FdeConfig:
    """repetitions, k_sim, d_proj, projection, final_dim: the encoding (indexing.kernels.fde.FdeShape).

    fill      an empty cell of a document takes its nearest token
    centred   the mean of the first block's token vectors is taken off every token
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


class FdeFamily(OnCpu):
    """See indexing.family.Family. Arrays: values i8 or f16 [N, D]; for int8 scales f32 [N]."""

    name: ClassVar[str] = "fde"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS
    learns: ClassVar[bool] = True

    def __init__(self, config: FdeConfig) -> None:
        self.config = config
        self._codec: tuple[FdeMatrices, F32] | None = None

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
        out = type(self)(self.config)
        if codec:
            if missing := [name for name in _ARRAYS if name not in codec]:
                raise Incompatible(f"the fde channel's codec lacks {missing}; build the collection again")
            planes, projections, slots, signs, centre = (np.array(codec[name]) for name in _ARRAYS)
            out._codec = FdeMatrices(planes, projections, slots, signs), centre
        return out

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the fde channel needs token vectors from the encoder")
        matrices, centre = self._need_codec()
        tokens = encoding.tokens
        values = encode_documents(
            _minus(tokens.values, centre), tokens.offsets, matrices, self.config.shape(), fill=self.config.fill
        )
        if self.config.storage == "float16":
            halves = values.astype(np.float16)
            if not np.isfinite(halves).all():
                raise InvalidInput("an encoding is not finite as float16; set fde.storage to int8")
            return {"values": halves}
        codes, scales = quantise_rows(values)
        return {"values": codes, "scales": scales}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        first = parts[0].arrays["values"]
        n_rows = sum(part.n_live for part in parts)

        def chunks() -> Iterator[Array]:
            for part in parts:
                for rows in part.live_blocks(first.shape[1] * first.itemsize, _BLOCK_BYTES):
                    yield part.arrays["values"][rows]

        out: dict[str, Array | ArrayStream] = {"values": ArrayStream(first.dtype, (n_rows, first.shape[1]), chunks())}
        if "scales" in parts[0].arrays:
            out["scales"] = np.concatenate([part.arrays["scales"][part.live_rows()] for part in parts])
        return out

    def open(self, parts: Sequence[SegmentPart]) -> FdeRetriever:
        return FdeRetriever(parts, self.config, self._codec)

    def _need_codec(self) -> tuple[FdeMatrices, F32]:
        if self._codec is None:
            raise InvalidInput("the fde channel has no codec yet; a collection learns it from its first block")
        return self._codec


class FdeRetriever:
    """Every row's inner product with the query's encoding; scores estimate repetitions times MaxSim."""

    def __init__(self, parts: Sequence[SegmentPart], config: FdeConfig, codec: tuple[FdeMatrices, F32] | None) -> None:
        self._parts = parts
        self._config = config
        self._codec = codec
        # Views, not copies: numba takes plain arrays.
        self._arrays = [{name: np.asarray(array) for name, array in part.arrays.items()} for part in parts]

    def __len__(self) -> int:
        return int(starts_of(self._parts)[-1])

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows a query."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        if self._codec is None or not len(self):
            return as_candidates([(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries), k)
        matrices, centre = self._codec
        values = _minus(np.asarray(queries.values, dtype=np.float32), centre)
        encoded = encode_queries(values, queries.offsets, matrices, self._config.shape())
        ranked: list[tuple[I64, F32]] = []
        for query in encoded:
            scores = np.concatenate([_scan(arrays, query) for arrays in self._arrays])
            if usable is not None:
                scores[~usable] = -np.inf
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"an fde scan has no parameters, got {sorted(params)}")
        return self


def _scan(arrays: dict[str, Array], query: F32) -> F32:
    if "scales" in arrays:
        return scan_int8(arrays["values"], arrays["scales"], query)
    return scan_half(arrays["values"], query)


def _minus(values: F32, centre: F32) -> F32:
    return values - centre if centre.any() else values
