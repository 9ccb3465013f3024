"""Family `multivector`: token vectors of every document, exact MaxSim over all of them or over given rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from chamfer.artifact import ArrayStream
from chamfer.errors import InvalidInput
from chamfer.types import F32, I64, Array, Bool, Candidates, Document, Encoding, TokenVectors, VectorKind, join_offsets
from indexing.family import SegmentPart, WithoutCodec, allowed_rows, locate, starts_of
from indexing.kernels.maxsim import fast_error, maxsim_fast, maxsim_rows
from indexing.kernels.topk import as_candidates, best, check_depth, near_best

F64 = NDArray[np.float64]
SAMPLE = 32
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class MultivectorConfig:
    """storage: float16 halves the bytes and moves a MaxSim score by less than 0.1 %; float32 keeps the bits."""

    storage: Literal["float16", "float32"] = "float16"


class MultivectorFamily(WithoutCodec):
    """See indexing.family.Family. Arrays: values [T, D], offsets i64 [N+1], largest_norm f64 [1]."""

    name: ClassVar[str] = "multivector"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS

    def __init__(self, config: MultivectorConfig) -> None:
        self.config = config

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the multivector channel needs token vectors from the encoder")
        values = encoding.tokens.values.astype(self.config.storage)
        if not np.isfinite(values).all():
            raise InvalidInput(f"a token vector is not finite as {self.config.storage}")
        norms = np.linalg.norm(values.astype(np.float32), axis=1)
        return {
            "values": values,
            "offsets": encoding.tokens.offsets,
            "largest_norm": np.array([norms.max(initial=0.0)], dtype=np.float64),
        }

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        first = parts[0].arrays["values"]
        lengths = [np.diff(part.arrays["offsets"])[part.live_rows()] for part in parts]
        offsets = join_offsets([np.concatenate([[0], np.cumsum(each)]).astype(np.int64) for each in lengths])

        def chunks() -> Iterator[Array]:
            for part in parts:
                for start, stop in _runs(part, _BLOCK_BYTES // (first.shape[1] * first.itemsize)):
                    yield part.arrays["values"][start:stop]

        return {
            "values": ArrayStream(first.dtype, (int(offsets[-1]), first.shape[1]), chunks()),
            "offsets": offsets,
            "largest_norm": np.array([max(float(part.arrays["largest_norm"][0]) for part in parts)]),
        }

    def open(self, parts: Sequence[SegmentPart]) -> MultivectorRetriever:
        return MultivectorRetriever(parts)


class MultivectorRetriever:
    """Exact MaxSim over the parts' token vectors; also a Rescorer."""

    stored_kind: ClassVar[VectorKind] = VectorKind.TOKENS

    def __init__(self, parts: Sequence[SegmentPart]) -> None:
        self._parts = parts
        self._starts = starts_of(parts)
        # Views, not copies: numba takes plain arrays, and offsets are read often.
        self._arrays = [(np.asarray(p.arrays["values"]), np.array(p.arrays["offsets"])) for p in parts]
        self._sample: tuple[F32, I64] | None = None
        self._largest_norm = max((float(p.arrays["largest_norm"][0]) for p in parts), default=0.0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest MaxSim a query, every live and allowed row being scored."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        rows = np.arange(len(self), dtype=np.int64) if usable is None else np.flatnonzero(usable).astype(np.int64)
        ranked: list[tuple[Array, Array]] = []
        for query in _matrices(queries):
            near = rows[near_best(self._score(query, rows, maxsim_fast), k, fast_error(query, self._largest_norm))]
            scores = self._score(query, near, maxsim_rows)
            places = best(scores, k)
            ranked.append((near[places], scores[places]))
        return as_candidates(ranked, k)

    def score(self, queries: TokenVectors, rows: I64) -> F32:
        """MaxSim f32 [Q, K] of rows i64 [Q, K], by `maxsim_fast`; padding rows (-1) score -inf."""
        out = np.full(rows.shape, -np.inf, dtype=np.float32)
        for q, query in enumerate(_matrices(queries)):
            real = rows[q] >= 0
            out[q, real] = self._score(query, rows[q, real], maxsim_fast)
        return out

    def vectors(self, rows: I64) -> TokenVectors:
        """Stored token vectors f32 of rows."""
        part_of, local = locate(self._starts, rows)
        dim = self._arrays[0][0].shape[1] if self._arrays else 0
        matrices = [np.empty((0, dim), dtype=np.float32)]
        for number, row in zip(part_of, local, strict=True):
            values, offsets = self._arrays[number]
            matrices.append(values[offsets[row] : offsets[row + 1]].astype(np.float32))
        ends = np.cumsum([len(matrix) for matrix in matrices]).astype(np.int64)
        return TokenVectors(np.concatenate(matrices), ends)

    def stored_form(self, queries: TokenVectors) -> TokenVectors:
        return queries

    def commonness(self, vectors: F32) -> F64:
        """How well an average document matches each vector f32 [n, D]: mean of max_j <v, d_j>, f64 [n].

        Over SAMPLE live documents with tokens, evenly spaced through the collection; read and kept at the first call.
        """
        if self._sample is None:
            self._sample = self._draw_sample()
        tokens, starts = self._sample
        if not len(starts):
            return np.zeros(len(vectors))
        best_match = np.maximum.reduceat(vectors @ tokens.T, starts, axis=1)
        out: F64 = best_match.mean(axis=1, dtype=np.float64)
        return out

    def _draw_sample(self) -> tuple[F32, I64]:
        usable = allowed_rows(self._parts, None)
        rows = np.arange(len(self), dtype=np.int64) if usable is None else np.flatnonzero(usable).astype(np.int64)
        sample = self.vectors(rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))])
        return sample.values, sample.offsets[:-1][np.diff(sample.offsets) > 0]

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"exact MaxSim has no parameters, got {sorted(params)}")
        return self

    def _score(self, query: F32, rows: I64, kernel: Callable[[F32, Array, I64, I64], F32]) -> F32:
        if not np.isfinite(query).all():
            raise InvalidInput("a query token vector is not finite")
        part_of, local = locate(self._starts, rows)
        out = np.empty(len(rows), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            values, offsets = self._arrays[number]
            out[here] = kernel(query, values, offsets, local[here])
        return out


def _matrices(queries: TokenVectors) -> Iterator[F32]:
    for start, stop in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
        yield np.asarray(queries.values[start:stop], dtype=np.float32)


def _runs(part: SegmentPart, budget: int) -> Iterator[tuple[int, int]]:
    """Token ranges of the live rows, neighbours joined, at most `budget` tokens each (one row at least)."""
    offsets = part.arrays["offsets"]
    start = stop = 0
    for row in part.live_rows():
        first, last = int(offsets[row]), int(offsets[row + 1])
        if first != stop or last - start > max(budget, 1):
            if stop > start:
                yield start, stop
            start = first
        stop = last
    if stop > start:
        yield start, stop
