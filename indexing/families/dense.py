"""Family `dense`: one vector per document, exact inner-product search over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Expandable, Retriever
from chamfer.core.types import F32, I64, Array, Bool, Candidates, DenseVectors, Document, Encoding, VectorKind
from chamfer.indexing.families.family import WithoutCodec
from chamfer.indexing.kernels.dot import dot_rows, dots, margin, products
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth, near_best
from chamfer.indexing.rows.merge import merge_rows
from chamfer.indexing.rows.scan import RowScan, few_rows
from chamfer.indexing.rows.segment_part import SegmentPart, part_of_mask
from chamfer.indexing.rows.storage.registry import STORAGES

_BLOCK_BYTES = 32 << 20
_VALUES = "values"


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
        arrays = STORAGES[self.config.storage].pack(encoding.dense.values, {})
        norms = np.linalg.norm(arrays[_VALUES].astype(np.float64), axis=1)
        return {**arrays, "largest_norm": np.array([norms.max(initial=0.0)])}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return {**merge_rows(parts, [_VALUES]), "largest_norm": np.array([largest_norm(parts)])}

    def open(self, parts: Sequence[SegmentPart]) -> DenseRetriever:
        return DenseRetriever(parts)


class DenseRetriever(Retriever[DenseVectors], Expandable[DenseVectors]):
    """Exact search over the parts' vectors."""

    stored_kind: ClassVar[VectorKind] = VectorKind.DENSE

    def __init__(self, parts: Sequence[SegmentPart]) -> None:
        storage = str(parts[0].arrays[_VALUES].dtype) if parts else DenseConfig.storage
        self._rows = RowScan(parts, STORAGES[storage], {}, [_VALUES])
        self._values = [arrays[_VALUES] for arrays in self._rows.arrays]
        self._largest_norm = largest_norm(parts)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k largest inner products per query; scores are float64 sums rounded to float32."""
        check_depth(k)
        vectors = np.asarray(queries.values, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise InvalidInput("a dense query vector is not finite")
        self._check_dim(vectors.shape[1])
        usable = self._rows.usable(allowed)
        masks = [part_of_mask(self._rows.starts, number, usable) for number in range(len(self._values))]
        few = [few_rows(mask) for mask in masks]
        n_scored = sum(len(values if rows is None else rows) for values, rows in zip(self._values, few, strict=True))
        step = max(1, _BLOCK_BYTES // (4 * max(n_scored, 1)))
        ranked: list[tuple[Array, Array]] = []
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            rows, scores = self._approximate(block, masks, few, n_scored)
            ranked += [self._decide(query, rows, each, k) for query, each in zip(block, scores, strict=True)]
        return as_candidates(ranked, k)

    def vectors(self, rows: I64) -> DenseVectors:
        """Stored vectors f32 [K, D] of rows, so that feedback need not encode the documents again."""
        return DenseVectors(self._rows.vectors(rows, self._values[0].shape[1] if self._values else 0))

    def stored_form(self, queries: DenseVectors) -> DenseVectors:
        return queries

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"dense search has no parameters, got {sorted(params)}")
        return self

    def inner_products(self, query: F32) -> F32:
        """Inner products f32 [N] of one query f32 [D] with every row, deleted ones included, in float32 sums."""
        self._check_dim(len(query))
        return np.concatenate([np.empty(0, dtype=np.float32), *(dots(values, query) for values in self._values)])

    def _approximate(
        self, queries: F32, masks: Sequence[Bool | None], few: Sequence[I64 | None], n_scored: int
    ) -> tuple[I64, F32]:
        """(rows i64 [n_scored], ascending; their inner products f32 [Q, n_scored] summed in any order).

        A part scores the rows listed in `few`; where that is None it scores all rows, and those outside the mask get
        -inf.
        """
        numbers = np.empty(n_scored, dtype=np.int64)
        scores = np.empty((len(queries), n_scored), dtype=np.float32)
        end = 0
        for part, (values, mask, rows) in enumerate(zip(self._values, masks, few, strict=True)):
            start, end = end, end + len(values if rows is None else rows)
            first = int(self._rows.starts[part])
            numbers[start:end] = np.arange(first, first + len(values)) if rows is None else first + rows
            if rows is not None:
                step = max(1, _BLOCK_BYTES // max(1, values.itemsize * values.shape[1]))
                for at in range(0, len(rows), step):
                    block = rows[at : at + step]
                    scores[:, start + at : start + at + len(block)] = products(values[block], queries)
                continue
            scores[:, start:end] = products(values, queries)
            if mask is not None:
                scores[:, start:end][:, ~mask] = -np.inf
        return numbers, scores

    def _decide(self, query: F32, rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
        """(the k best rows, their exact scores) of rows i64 [n], ascending, with approximate scores f32 [n]."""
        slack = margin(len(query), float(np.linalg.norm(query.astype(np.float64))), self._largest_norm)
        near = rows[near_best(scores, k, slack)]
        exact = dot_rows(self.vectors(near).values, query)
        chosen = best(exact, k)
        return near[chosen], exact[chosen]

    def _check_dim(self, dim: int) -> None:
        for values in self._values:
            if values.shape[1] != dim:
                raise InvalidInput(f"query vectors have {dim} dimensions, the index has {values.shape[1]}")


def largest_norm(parts: Sequence[SegmentPart]) -> float:
    """An upper bound on the Euclidean norm of every vector of the parts."""
    return max((float(part.arrays["largest_norm"][0]) for part in parts), default=0.0)
