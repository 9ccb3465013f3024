"""Family `fde`: MUVERA's fixed dimensional encoding of a document's token vectors, as a cheap first stage.

Ask it for more candidates than are wanted and let `multivector` score those exactly. The matrices of the encoding, the
mean that is taken off all token vectors when `centred`, and what a storage learns are the collection's codec.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import (
    F32,
    I64,
    Array,
    Bool,
    Candidates,
    DenseVectors,
    Document,
    Encoding,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.families.family import (
    Codec,
    SegmentPart,
    allowed_rows,
    check_finite,
    check_tokens,
    locate,
    starts_of,
)
from chamfer.indexing.kernels.fde import (
    FdeMatrices,
    FdeShape,
    Projection,
    draw_matrices,
    encode_documents,
    encode_queries,
)
from chamfer.indexing.kernels.product import WIDTH
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth
from chamfer.indexing.rows.ann import SMALLEST, SearchName, build_index, open_index, search_index
from chamfer.indexing.rows.storage import STORAGES, Storage, StorageName

_BLOCK_BYTES = 32 << 20
_SAMPLE_BYTES = 512 << 20
_SAMPLE_ROWS = 100_000  # the paper's
_DRAWN = ("planes", "projections", "final_slots", "final_signs", "centre")
_INDEX = "index"
_SOME = np.ones(1, dtype=bool)


@dataclass(frozen=True, kw_only=True)
class FdeConfig:
    """repetitions, k_sim, d_proj, projection, final_dim: the encoding (chamfer.indexing.kernels.fde.FdeShape).

    fill      an empty cell of a document takes its nearest token
    centred   the mean of the sample's token vectors is taken off every token
    seed      of all draws
    storage   int8: a byte a dimension and one scale a document; float16: two bytes; pq8: the paper's PQ-256-8, a byte
              for 8 dimensions; rabitq: a bit a dimension (chamfer.indexing.rows.storage)
    search    flat: every row; hnsw, ivf: faiss names `depth_factor` times k candidates in segments of 1,000 documents
              and more, the storage scores them. They keep the rows once more, as float16
    ef_search, n_probe   how far hnsw and ivf look
    """

    repetitions: int = 20
    k_sim: int = 4
    d_proj: int = 8
    projection: Projection = "count_sketch"
    final_dim: int = 0
    fill: bool = True
    centred: bool = False
    seed: int = 1
    storage: StorageName = "int8"
    search: SearchName = "flat"
    depth_factor: int = 4
    ef_search: int = 256
    n_probe: int = 16

    def __post_init__(self) -> None:
        shape = self.shape()  # refuses what cannot be
        if self.storage in ("pq8", "rabitq") and shape.dim % WIDTH:
            raise InvalidInput(
                f"fde.storage {self.storage} needs a multiple of {WIDTH} dimensions, there are {shape.dim}"
            )
        if min(self.depth_factor, self.ef_search, self.n_probe) < 1:
            raise InvalidInput(
                f"fde depth_factor {self.depth_factor}, ef_search {self.ef_search}, n_probe {self.n_probe}; "
                "expected at least 1 each"
            )
        if self.search == "ivf":
            warnings.warn(
                "fde.search ivf is known to lose a large part of the recall of an FDE; measure it (chamfer plan), or "
                "set flat or hnsw",
                stacklevel=2,
            )

    def shape(self) -> FdeShape:
        return FdeShape(self.repetitions, self.k_sim, self.d_proj, self.projection, self.final_dim)


class FdeFamily:
    """See chamfer.indexing.families.family.Family. Arrays: those of the storage; with hnsw or ivf `index`, faiss'
    bytes.
    """

    name: ClassVar[str] = "fde"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS
    learns: ClassVar[bool] = True

    def __init__(self, config: FdeConfig, device: str = "cpu") -> None:
        self.config = config
        self._device = device
        self._storage: Storage = STORAGES[config.storage]
        self._codec: Codec = {}
        self._encoder: Encoder | None = None

    def on_device(self, device: str) -> Self:
        return type(self)(self.config, device).with_codec(self._codec)

    def learn(self, encoding: Encoding | None) -> Codec:
        """Draws the matrices, takes the mean of the token vectors, and trains the storage on a sample of documents."""
        if encoding is None or encoding.tokens is None:
            return {}  # an empty collection: there is nothing to encode
        tokens, config = encoding.tokens, self.config
        check_finite(tokens.values, "document")
        matrices = draw_matrices(config.shape(), tokens.dim, config.seed)
        centre = np.zeros(tokens.dim, dtype=np.float32)
        if config.centred and len(tokens.values):
            centre = tokens.values.astype(np.float64).mean(axis=0).astype(np.float32)
        encoder = Encoder(matrices, centre, config, self._device)
        most = min(len(tokens), _SAMPLE_ROWS, max(1, _SAMPLE_BYTES // (4 * config.shape().dim)))
        sample = np.zeros((1, config.shape().dim), dtype=np.float32)
        if len(tokens):
            sample = encoder.documents(tokens.take(np.linspace(0, len(tokens) - 1, most).astype(np.int64)))
        return {
            "planes": matrices.planes,
            "projections": matrices.projections,
            "final_slots": matrices.final_slots,
            "final_signs": matrices.final_signs,
            "centre": centre,
            **self._storage.learn(sample, config.repetitions, config.seed),
        }

    def with_codec(self, codec: Codec) -> Self:
        out = type(self)(self.config, self._device)
        if codec:
            if missing := [name for name in _DRAWN if name not in codec]:
                raise Incompatible(f"the fde channel's codec lacks {missing}; build the collection again")
            out._codec = {name: np.array(array) for name, array in codec.items()}
            planes, projections, slots, signs, centre = (out._codec[name] for name in _DRAWN)
            out._encoder = Encoder(FdeMatrices(planes, projections, slots, signs), centre, self.config, self._device)
        return out

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the fde channel needs token vectors from the encoder")
        if self._encoder is None:
            raise InvalidInput("the fde channel has no codec yet; a collection learns it from its sample")
        if len(encoding.tokens.values) and not self._codec.get("centroids", _SOME).any():
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
        out = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        return {**out, **self._index([SegmentPart(out, None, len(tokens))])}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        n_rows = sum(part.n_live for part in parts)
        out: dict[str, Array | ArrayStream] = {}
        for name, first in parts[0].arrays.items():
            if name != _INDEX:
                stream = ArrayStream(first.dtype, (n_rows, *first.shape[1:]), _live_rows(parts, name))
                out[name] = stream if first.ndim > 1 else np.concatenate([first[:0], *stream.chunks])
        return {**out, **self._index(parts)}

    def open(self, parts: Sequence[SegmentPart]) -> FdeRetriever:
        return FdeRetriever(parts, self.config, self._codec, self._encoder)

    def _index(self, parts: Sequence[SegmentPart]) -> dict[str, Array]:
        """The index over the live rows, if the configuration asks for one and there are enough of them."""
        n_rows = sum(part.n_live for part in parts)
        if self.config.search == "flat" or n_rows < SMALLEST:
            return {}
        step = max(1, _BLOCK_BYTES // (4 * self.config.shape().dim))
        blocks = [(part, rows) for part in parts for rows in part.live_blocks(1, step)]
        sample = np.concatenate(
            [self._unpacked(part, rows) for part, rows in blocks[: max(1, _SAMPLE_BYTES // _BLOCK_BYTES)]]
        )
        values = (self._unpacked(part, rows) for part, rows in blocks)
        return {_INDEX: build_index(self.config.search, values, sample, self.config.seed)}

    def _unpacked(self, part: SegmentPart, rows: I64) -> F32:
        arrays = {name: array[rows] for name, array in part.arrays.items() if name != _INDEX}
        return self._storage.unpack(arrays, self._codec)


class FdeRetriever:
    """Inner products with the query's encoding; scores estimate repetitions times MaxSim."""

    stored_kind: ClassVar[VectorKind] = VectorKind.DENSE

    def __init__(self, parts: Sequence[SegmentPart], config: FdeConfig, codec: Codec, encoder: Encoder | None) -> None:
        self._parts = parts
        self._config = config
        self._codec = codec
        self._encoder = encoder
        self._starts = starts_of(parts)
        self._on_device: Callable[[F32], F32] | None = None
        # Views, not copies: numba takes plain arrays.
        self._arrays = [{n: np.asarray(a) for n, a in part.arrays.items() if n != _INDEX} for part in parts]
        storage = STORAGES[config.storage]
        self._storage = storage
        self._scans = [] if encoder is None else [storage.scanner(arrays, codec) for arrays in self._arrays]
        self._indexes = [open_index(part.arrays[_INDEX]) if _INDEX in part.arrays else None for part in parts]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def bytes_per_document(self) -> float:
        """Of all arrays of all parts."""
        return sum(array.nbytes for part in self._parts for array in part.arrays.values()) / max(len(self), 1)

    def search(self, queries: TokenVectors | DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows a query, token vectors or in their stored form; as many as are allowed if those are fewer."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        if self._encoder is None or not len(self):
            return as_candidates([(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries), k)
        ranked: list[tuple[I64, F32]] = []
        encoded = queries.values if isinstance(queries, DenseVectors) else self._encoder.queries(queries)
        on_device = None if self._on_device is None else self._on_device(encoded)
        for number, query in enumerate(encoded):
            if on_device is None:
                scores = np.concatenate([self._scores(part, query, k, usable) for part in range(len(self._parts))])
            else:
                scores = on_device[number] if usable is None else np.where(usable, on_device[number], -np.inf)
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)

    def vectors(self, rows: I64) -> DenseVectors:
        """What is stored of rows, f32 [K, D]: as far from their encodings as the storage is."""
        part_of, local = locate(self._starts, rows)
        out = np.empty((len(rows), self._config.shape().dim), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            arrays = {name: array[local[here]] for name, array in self._arrays[number].items()}
            out[here] = self._storage.unpack(arrays, self._codec)
        return DenseVectors(out)

    def stored_form(self, queries: TokenVectors) -> DenseVectors:
        """The queries' encodings f32 [Q, D], whose inner products with `vectors` are the scores."""
        if self._encoder is None:
            raise InvalidInput("the fde channel of an empty collection encodes nothing")
        return DenseVectors(self._encoder.queries(queries))

    def with_params(self, **params: Any) -> Self:
        """The same rows, searched otherwise: ef_search (hnsw), n_probe (ivf), depth_factor (both); device (flat).

        device: "cuda", or another of torch's, to which float16 or int8 rows are copied and where all are scanned.
        """
        known = {"flat": ("device",), "hnsw": ("ef_search", "depth_factor"), "ivf": ("n_probe", "depth_factor")}
        if unknown := sorted(set(params) - set(known[self._config.search])):
            raise InvalidInput(
                f"an fde search of kind {self._config.search} has no parameters {unknown}; known: "
                f"{list(known[self._config.search])}"
            )
        out = copy(self)
        if (device := params.pop("device", None)) is not None:
            out._on_device = self._copied_to(device)
        out._config = replace(self._config, **params)
        return out

    def _copied_to(self, device: str) -> Callable[[F32], F32]:
        """What gives f32 [Q, N] of encoded queries f32 [Q, D], computed on the device."""
        import torch

        from chamfer.indexing.kernels.fde_torch import inner_products

        if self._config.storage not in ("float16", "int8"):
            raise InvalidInput(f"an fde scan on {device} reads float16 or int8, fde.storage is {self._config.storage}")
        parts = [{name: torch.tensor(array, device=device) for name, array in part.items()} for part in self._arrays]

        def scan(queries: F32) -> F32:
            asked = torch.from_numpy(queries).to(device)
            scores = [inner_products(part["values"], part.get("scales"), asked) for part in parts]
            out: F32 = torch.cat(scores, dim=1).cpu().numpy()
            return out

        return scan

    def _scores(self, number: int, query: F32, k: int, usable: Bool | None) -> F32:
        """f32 [n] of one part; -inf for rows that cannot be used or that the index did not name."""
        first, last = int(self._starts[number]), int(self._starts[number + 1])
        own = None if usable is None else usable[first:last]
        named = self._named(number, query, k, own)
        if named is None:
            scores = self._scans[number](query)
            return scores if own is None else np.where(own, scores, np.float32(-np.inf))
        arrays = {name: np.ascontiguousarray(array[named]) for name, array in self._arrays[number].items()}
        out = np.full(last - first, -np.inf, dtype=np.float32)
        out[named] = self._storage.scanner(arrays, self._codec)(query)
        return out

    def _named(self, number: int, query: F32, k: int, usable: Bool | None) -> I64 | None:
        """The rows that an index names; None where all are to be scanned: no index, or it names too few."""
        index, config = self._indexes[number], self._config
        n_usable = self._parts[number].n_documents if usable is None else int(np.count_nonzero(usable))
        depth = config.depth_factor * k
        if index is None or n_usable <= 2 * depth:
            return None
        effort = config.ef_search if config.search == "hnsw" else config.n_probe
        rows = search_index(index, query, depth, usable, effort)
        return np.sort(rows) if len(rows) >= min(k, n_usable) else None


@dataclass(frozen=True, eq=False)
class Encoder:
    """The collection's encoding of token vectors; documents are encoded on `device`."""

    matrices: FdeMatrices
    centre: F32
    config: FdeConfig
    device: str = "cpu"

    def documents(self, tokens: TokenVectors) -> F32:
        """f32 [N, D]."""
        values, shape, fill = self._centred(tokens, "document"), self.config.shape(), self.config.fill
        if self.device == "cpu":
            return encode_documents(values, tokens.offsets, self.matrices, shape, fill=fill)
        import torch

        from chamfer.indexing.kernels import fde_torch

        moved, offsets = (torch.from_numpy(array).to(self.device) for array in (values, tokens.offsets))
        out: F32 = fde_torch.encode_documents(moved, offsets, self.matrices, shape, fill=fill).cpu().numpy()
        return out

    def queries(self, tokens: TokenVectors) -> F32:
        """f32 [Q, D]."""
        return encode_queries(self._centred(tokens, "query"), tokens.offsets, self.matrices, self.config.shape())

    def _centred(self, tokens: TokenVectors, whose: str) -> F32:
        check_tokens(tokens.values, len(self.centre), FdeFamily.name, whose)
        values = np.asarray(tokens.values, dtype=np.float32)
        return values - self.centre if self.centre.any() else values


def _live_rows(parts: Sequence[SegmentPart], name: str) -> Iterator[Array]:
    for part in parts:
        array = part.arrays[name]
        for rows in part.live_blocks(array[:1].nbytes, _BLOCK_BYTES):
            yield array[rows]
