"""Family `lexical`: BM25 over the documents' text, in an inverted index of impacts.

A segment stores term frequencies and lengths. Document frequencies and the mean length are computed over the live
documents of all segments at opening, so that scores do not depend on the division into segments (ADR 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, ClassVar, Self

import numpy as np

from chamfer.core.analysis import AnalysisConfig, Analyzer, term_hashes
from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import InvalidInput
from chamfer.core.idf import bm25_idf
from chamfer.core.protocols import Expandable, Retriever
from chamfer.core.types import I64, Array, Bool, Candidates, Document, Encoding, SparseVectors, VectorKind
from chamfer.indexing.families.family import WithoutCodec
from chamfer.indexing.families.inverted.impact_index import (
    ImpactIndex,
    Postings,
    live_postings,
    pack_postings,
    positions_of,
    union,
)
from chamfer.indexing.families.inverted.list_pruning import check_pruning
from chamfer.indexing.kernels.impact_types import Impacts
from chamfer.indexing.rows.segment_part import SegmentPart

_LARGEST_TF = np.iinfo(np.uint8).max
_LEAST_NORM = np.float32(1e-30)  # with k1 = 0: tf / (tf + norm) is then 1


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """k1 and b of BM25 (Robertson and Zaragoza, 2009); title_weight: the number of times that a title's words count.

    pruning: 0 is exact; otherwise the search may skip postings lists that together contribute at most this share of the
    largest possible score.
    """

    k1: float = 0.9
    b: float = 0.4
    title_weight: int = 1
    pruning: float = 0.0
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1 or self.title_weight < 0:
            raise InvalidInput(
                f"lexical k1 {self.k1}, b {self.b}, title_weight {self.title_weight}; expected k1 >= 0, 0 <= b <= 1, "
                "title_weight >= 0"
            )
        check_pruning("lexical", self.pruning)


class LexicalFamily(WithoutCodec):
    """See chamfer.indexing.families.family.Family. Arrays: those of chamfer.indexing.families.inverted.impact_index;
    terms u64 (hashes), row_values u8 (term frequencies, at most 255), largest u8, and lengths i32 [N] (terms of each
    document)."""

    name: ClassVar[str] = "lexical"
    kind: ClassVar[VectorKind | None] = None

    def __init__(self, config: LexicalConfig) -> None:
        self.config = config
        self._analyzer = Analyzer(config.analysis)

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        del encoding  # it reads only the text
        counts: list[dict[str, int]] = []
        for document in documents:
            terms = self._analyzer(document.text) + self._analyzer(document.title) * self.config.title_weight
            count: dict[str, int] = {}
            for term in terms:
                count[term] = count.get(term, 0) + 1
            counts.append(count)
        numbers = {term: number for number, term in enumerate(dict.fromkeys(t for count in counts for t in count))}
        number = np.fromiter((numbers[t] for count in counts for t in count), dtype=np.int64)
        tf = np.fromiter((n for count in counts for n in count.values()), dtype=np.int64)
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum([len(count) for count in counts], out=offsets[1:])
        hashes = term_hashes(numbers)
        rank = np.argsort(np.argsort(hashes, kind="stable"), kind="stable")
        term_numbers = rank[number]
        order = np.lexsort((term_numbers, np.repeat(np.arange(len(counts)), np.diff(offsets))))
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.int32)
        values = np.minimum(tf[order], _LARGEST_TF).astype(np.uint8)
        return _arrays(Postings(offsets, np.sort(hashes), term_numbers[order], values), lengths)

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        lengths = np.concatenate([part.arrays["lengths"][part.live_rows()] for part in parts])
        return dict(_arrays(live_postings(parts), lengths))

    def open(self, parts: Sequence[SegmentPart]) -> LexicalRetriever:
        return LexicalRetriever(parts, self.config)


class LexicalRetriever(Retriever[SparseVectors], Expandable[SparseVectors]):
    """Exact BM25 (Kamphuis et al., ECIR 2020, "Lucene (accurate)", without the constant factor k1 + 1).

    Each query term adds idf tf / (tf + k1 (1 - b + b length / mean length)) to a document's score. Queries come from
    `encode_queries`, without a model.
    """

    stored_kind: ClassVar[VectorKind] = VectorKind.SPARSE

    def __init__(self, parts: Sequence[SegmentPart], config: LexicalConfig) -> None:
        self._parts = parts
        self._config = config
        self._analyzer = Analyzer(config.analysis)
        self._lock = Lock()  # the stemmer and its cache are not thread-safe
        arrays = [{name: np.asarray(array) for name, array in part.arrays.items()} for part in parts]
        self._vocabulary = union([each["terms"] for each in arrays])
        numbers = [np.searchsorted(self._vocabulary, each["terms"]) for each in arrays]
        n_live = sum(part.n_live for part in parts)
        frequency = _document_frequency(parts, numbers, len(self._vocabulary))
        self._idf = bm25_idf(frequency, n_live)
        total = sum(int(part.arrays["lengths"][part.live_rows()].sum()) for part in parts)
        mean = max(total / max(n_live, 1), 1e-9)
        impacts = [_impacts(each, config, mean) for each in arrays]
        self._index = ImpactIndex(parts, impacts, numbers, len(self._vocabulary))

    def __len__(self) -> int:
        return len(self._index)

    def encode_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Term counts of the texts over this collection's vocabulary. Drops unknown terms."""
        weights, terms, lengths = [], [], []
        for text in texts:
            with self._lock:
                words = self._analyzer(text)
            hashes, counts = np.unique(term_hashes(words), return_counts=True)
            positions = positions_of(self._vocabulary, hashes)
            weights.append(counts[positions >= 0].astype(np.float32))
            terms.append(positions[positions >= 0].astype(np.int32))
            lengths.append(len(terms[-1]))
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        none_f, none_i = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
        return SparseVectors(
            np.concatenate([none_f, *weights]), np.concatenate([none_i, *terms]), offsets, len(self._vocabulary)
        )

    def search(self, queries: SparseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k highest BM25 scores per query; documents that share no term with it are not returned."""
        weights = queries.weights * self._idf[queries.terms]
        return self._index.search(queries, weights, k, allowed, self._config.pruning)

    def vectors(self, rows: Sequence[int] | I64) -> SparseVectors:
        """Term counts of rows over this collection's vocabulary, as `encode_queries` counts those of a query."""
        return self._index.vectors(rows)

    def stored_form(self, queries: SparseVectors) -> SparseVectors:
        """The queries themselves, whose counts are in the space of `vectors`."""
        return queries

    def with_params(self, **params: Any) -> Self:
        """A retriever with other k1, b or pruning (see LexicalConfig)."""
        if unknown := set(params) - {"k1", "b", "pruning"}:
            raise InvalidInput(f"lexical search takes k1, b and pruning, not {sorted(unknown)}")
        return type(self)(self._parts, replace(self._config, **params))


def _arrays(postings: Postings, lengths: Array) -> dict[str, Array]:
    return {**pack_postings(postings, postings.values, postings.values), "lengths": lengths}


def _impacts(arrays: dict[str, Array], config: LexicalConfig, mean: float) -> Impacts:
    """A segment under the collection's mean length; `largest` combines each list's largest tf and the least norm."""
    norms = (config.k1 * (1 - config.b + config.b * arrays["lengths"] / mean)).astype(np.float32)
    norms = np.maximum(norms, _LEAST_NORM)
    largest_tf = arrays["largest"].astype(np.float32)
    largest = largest_tf / (largest_tf + norms.min(initial=np.float32(np.inf)))
    by_term = (arrays["offsets"], arrays["documents"], arrays["codes"], largest)
    by_row = (arrays["row_offsets"], arrays["row_terms"], arrays["row_values"], norms)
    return Impacts(*by_term, *by_row, saturating=True)


def _document_frequency(parts: Sequence[SegmentPart], numbers: Sequence[I64], vocabulary: int) -> I64:
    """Number of live documents that contain each term: i64 [vocabulary]."""
    frequencies = np.zeros(vocabulary, dtype=np.int64)
    for part, terms in zip(parts, numbers, strict=True):
        offsets = np.asarray(part.arrays["offsets"])
        if part.live is None:
            counts = np.diff(offsets)
        else:
            running = np.concatenate([[0], np.cumsum(part.live[part.arrays["documents"]])])
            counts = running[offsets[1:]] - running[offsets[:-1]]
        frequencies[terms] += counts
    return frequencies
