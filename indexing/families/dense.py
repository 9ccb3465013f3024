"""Family `dense`: one vector a document, exact inner-product search over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Array, Bool, Candidates, DenseVectors, Document, Encoding, VectorKind
from chamfer.indexing.families.family import SegmentPart, WithoutCodec, allowed_rows, locate, starts_of
from chamfer.indexing.kernels.dot import dot_rows, margin, products
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth, near_best

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """storage: float32 keeps the encoder's bits, float16 takes half the bytes."""

    storage: Literal["float32", "float16"] = "float32"


class DenseFamily(WithoutCodec):
    """See chamfer.indexing.families.family.Family. Arrays: values [N, D], largest_norm f64 [1]."""

    name: ClassVar[str] = "dense"
    kind: ClassVar[VectorKind | None] = VectorKind.DENSE

    def __init__(self, config: DenseConfig) -> None:
        self.config = config

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.dense is None:
            raise InvalidInput("the dense channel needs dense vectors from the encoder")
        values = encoding.dense.values.astype(self.config.storage)
        if not np.isfinite(values).all():
            raise InvalidInput(f"a dense vector is not finite as {self.config.storage}")
        norms = np.linalg.norm(values.astype(np.float64), axis=1)
        return {"values": values, "largest_norm": np.array([norms.max(initial=0.0)])}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        values = [part.arrays["values"] for part in parts]
        n_rows = sum(part.n_live for part in parts)
        largest = max((float(part.arrays["largest_norm"][0]) for part in parts), default=0.0)

        def chunks() -> Iterator[Array]:
            for part in parts:
                for rows in part.live_blocks(values[0].shape[1] * values[0].itemsize, _BLOCK_BYTES):
                    yield part.arrays["values"][rows]

        return {
            "values": ArrayStream(values[0].dtype, (n_rows, values[0].shape[1]), chunks()),
            "largest_norm": np.array([largest]),
        }

    def open(self, parts: Sequence[SegmentPart]) -> DenseRetriever:
        return DenseRetriever(parts)


class DenseRetriever:
    """Exact search over the parts' vectors."""

    stored_kind: ClassVar[VectorKind] = VectorKind.DENSE

    def __init__(self, parts: Sequence[SegmentPart]) -> None:
        self._parts = parts
        self._starts = starts_of(parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, queries: DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k largest inner products a query; scores are float64 sums rounded to float32."""
        check_depth(k)
        values = np.asarray(queries.values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise InvalidInput("a dense query vector is not finite")
        usable = allowed_rows(self._parts, allowed)
        most = max(1, _BLOCK_BYTES // (4 * max(len(self), 1)))
        ranked: list[tuple[Array, Array]] = []
        for start in range(0, len(values), most):
            block = values[start : start + most]
            scores = self.approximate(block)
            if usable is not None:
                scores[:, ~usable] = -np.inf
            ranked += [self._decide(query, row, k) for query, row in zip(block, scores, strict=True)]
        return as_candidates(ranked, k)

    def vectors(self, rows: I64) -> DenseVectors:
        """Stored vectors f32 [K, D] of rows: what feedback needs instead of encoding again."""
        part_of, local = locate(self._starts, rows)
        dim = self._parts[0].arrays["values"].shape[1] if self._parts else 0
        out = np.empty((len(rows), dim), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            out[here] = self._parts[number].arrays["values"][local[here]]
        return DenseVectors(out)

    def stored_form(self, queries: DenseVectors) -> DenseVectors:
        return queries

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"dense search has no parameters, got {sorted(params)}")
        return self

    def approximate(self, queries: F32) -> F32:
        """Inner products f32 [Q, N] of queries f32 [Q, D] with every row, summed in any order."""
        out = np.empty((len(queries), len(self)), dtype=np.float32)
        for number, part in enumerate(self._parts):
            stored = part.arrays["values"]
            if queries.shape[1] != stored.shape[1]:
                raise InvalidInput(f"query vectors have {queries.shape[1]} dimensions, the index has {stored.shape[1]}")
            step = max(1, _BLOCK_BYTES // (4 * stored.shape[1]))
            first = int(self._starts[number])
            for at in range(0, len(stored), step):
                block = stored[at : at + step]
                out[:, first + at : first + at + len(block)] = products(block, queries)
        return out

    def _decide(self, query: F32, scores: F32, k: int) -> tuple[I64, F32]:
        largest = max((float(part.arrays["largest_norm"][0]) for part in self._parts), default=0.0)
        slack = margin(len(query), float(np.linalg.norm(query.astype(np.float64))), largest)
        rows = near_best(scores, k, slack)
        exact = dot_rows(self.vectors(rows).values, query)
        places = best(exact, k)
        return rows[places], exact[places]
