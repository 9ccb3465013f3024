"""Family `sparse`: learned sparse vectors (SPLADE and its inference-free variants) in an inverted index of impacts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Expandable, Retriever
from chamfer.core.types import F32, I64, Array, Bool, Candidates, Document, Encoding, SparseVectors, VectorKind
from chamfer.indexing.families.family import WithoutCodec
from chamfer.indexing.families.inverted.impact_index import ImpactIndex, Postings, live_postings, pack_postings
from chamfer.indexing.families.inverted.list_pruning import check_pruning
from chamfer.indexing.kernels.impact_types import Impacts
from chamfer.indexing.kernels.impacts import quantise
from chamfer.indexing.rows.segment_part import SegmentPart


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Storage and search of learned sparse vectors.

    storage   float32 gives the exact scores of the encoder's vectors; uint8 rounds weights to steps of 1/255 of a
              row's largest, in two thirds of the bytes
    pruning   0 is exact; otherwise the search may skip postings lists that together contribute at most this share of
              the largest possible score (also a search parameter)
    """

    storage: Literal["float32", "uint8"] = "float32"
    pruning: float = 0.0

    def __post_init__(self) -> None:
        check_pruning("sparse", self.pruning)


class SparseFamily(WithoutCodec):
    """See chamfer.indexing.families.family.Family. Arrays: those of chamfer.indexing.families.inverted.impact_index;
    terms i32, row_values f32 or u8, largest f32, and scales f32 [N] (one step of a row's codes)."""

    name: ClassVar[str] = "sparse"
    kind: ClassVar[VectorKind | None] = VectorKind.SPARSE

    def __init__(self, config: SparseConfig) -> None:
        self.config = config

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        del documents
        if encoding is None or encoding.sparse is None:
            raise InvalidInput("the sparse channel needs sparse vectors from the encoder")
        vectors = encoding.sparse
        if not np.isfinite(vectors.weights).all():
            raise InvalidInput("a sparse weight is not finite")
        codes, scales = quantise(vectors.weights, vectors.offsets)
        values = vectors.weights if self.config.storage == "float32" else codes
        names = np.arange(vectors.vocabulary, dtype=np.int32)
        return _arrays(Postings(vectors.offsets, names, vectors.terms, values), codes, scales)

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        postings = live_postings(parts)
        scales = np.concatenate([part.arrays["scales"][part.live_rows()] for part in parts])
        values = postings.values
        codes = values if values.dtype == np.uint8 else quantise(values, postings.row_offsets)[0]
        return dict(_arrays(postings, codes, scales))

    def open(self, parts: Sequence[SegmentPart]) -> SparseRetriever:
        return SparseRetriever(parts, self.config)


class SparseRetriever(Retriever[SparseVectors], Expandable[SparseVectors]):
    """Inner products of sparse queries with all rows' vectors; rows that share no term are not returned."""

    stored_kind: ClassVar[VectorKind] = VectorKind.SPARSE

    def __init__(self, parts: Sequence[SegmentPart], config: SparseConfig) -> None:
        self._config = config
        arrays = [{name: np.asarray(array) for name, array in part.arrays.items()} for part in parts]
        vocabulary = max((int(each["terms"][-1]) + 1 for each in arrays if len(each["terms"])), default=0)
        self._index = ImpactIndex(parts, [_impacts(each) for each in arrays], [a["terms"] for a in arrays], vocabulary)

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: SparseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows per query."""
        return self._index.search(queries, queries.weights, k, allowed, self._config.pruning)

    def vectors(self, rows: Sequence[int] | I64) -> SparseVectors:
        """The stored vectors of rows."""
        return self._index.vectors(rows)

    def stored_form(self, queries: SparseVectors) -> SparseVectors:
        """The queries themselves."""
        return queries

    def with_params(self, **params: Any) -> Self:
        """A retriever with another pruning (see SparseConfig)."""
        if unknown := set(params) - {"pruning"}:
            raise InvalidInput(f"sparse search takes pruning, not {sorted(unknown)}")
        retriever = copy(self)
        retriever._config = replace(self._config, **params)
        return retriever


def _arrays(postings: Postings, codes: Array, scales: F32) -> dict[str, Array]:
    weights = postings.values
    if weights.dtype == np.uint8:
        weights = weights * np.repeat(scales, np.diff(postings.row_offsets))
    return {**pack_postings(postings, codes, weights), "scales": scales}


def _impacts(arrays: dict[str, Array]) -> Impacts:
    by_term = (arrays["offsets"], arrays["documents"], arrays["codes"], arrays["largest"])
    by_row = (arrays["row_offsets"], arrays["row_terms"], arrays["row_values"], arrays["scales"])
    return Impacts(*by_term, *by_row, saturating=False)
