"""Family `lexical`: BM25 over the documents' text.

A segment keeps term frequencies and lengths. Document frequencies and the mean length are added up over the live
documents of all segments at opening, so that scores do not depend on how documents lie in segments (ADR 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, ClassVar, Self

import numpy as np

from chamfer.artifact import ArrayStream
from chamfer.errors import InvalidInput
from chamfer.types import F32, I64, Array, Bool, Candidates, Document, Encoding, SparseVectors, VectorKind
from indexing.family import SegmentPart, WithoutCodec, allowed_rows, starts_of
from indexing.kernels.inverted import add_bm25, invert
from indexing.kernels.topk import as_candidates, best, check_depth
from indexing.sparse.analysis import U64, AnalysisConfig, Analyzer, term_hashes
from indexing.sparse.forward import ForwardIndex

_MOST = np.iinfo(np.uint16).max


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """k1 and b of BM25 (Robertson and Zaragoza, 2009); title_weight counts a title's words that many times."""

    k1: float = 0.9
    b: float = 0.4
    title_weight: int = 1
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1 or self.title_weight < 0:
            raise InvalidInput(
                f"lexical k1 {self.k1}, b {self.b}, title_weight {self.title_weight}; expected k1 >= 0, 0 <= b <= 1, "
                "title_weight >= 0"
            )


class LexicalFamily(WithoutCodec):
    """See indexing.family.Family.

    Arrays: terms u64 [V] (hashes, ascending), offsets i64 [V+1], documents i32 [Z], frequencies u16 [Z] (capped),
    lengths i32 [N] (terms of each document).
    """

    name: ClassVar[str] = "lexical"
    kind: ClassVar[VectorKind | None] = None

    def __init__(self, config: LexicalConfig) -> None:
        self.config = config
        self._analyzer = Analyzer(config.analysis)

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        del encoding  # text is all it reads
        counts: list[dict[str, int]] = []
        for document in documents:
            terms = self._analyzer(document.text) + self._analyzer(document.title) * self.config.title_weight
            count: dict[str, int] = {}
            for term in terms:
                count[term] = count.get(term, 0) + 1
            counts.append(count)
        names = {term: place for place, term in enumerate(dict.fromkeys(t for count in counts for t in count))}
        place = np.fromiter((names[t] for count in counts for t in count), dtype=np.int64)
        tf = np.fromiter((n for count in counts for n in count.values()), dtype=np.int64)
        owner = np.repeat(np.arange(len(documents), dtype=np.int64), [len(count) for count in counts])
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.int32)
        return _arrays(term_hashes(names), place, owner, np.minimum(tf, _MOST).astype(np.uint16), lengths)

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        vocabulary = _vocabulary(parts)
        places, owners, frequencies, lengths = [], [], [], []
        first = 0
        for part in parts:
            live = part.live_rows()
            renumbered = np.full(part.n_documents, -1, dtype=np.int64)
            renumbered[live] = first + np.arange(len(live))
            owner = renumbered[part.arrays["documents"]]
            term = np.repeat(np.searchsorted(vocabulary, part.arrays["terms"]), np.diff(part.arrays["offsets"]))
            keep = owner >= 0
            places.append(term[keep])
            owners.append(owner[keep])
            frequencies.append(part.arrays["frequencies"][keep])
            lengths.append(part.arrays["lengths"][live])
            first += len(live)
        return dict(
            _arrays(
                vocabulary,
                np.concatenate(places),
                np.concatenate(owners),
                np.concatenate(frequencies),
                np.concatenate(lengths),
            )
        )

    def open(self, parts: Sequence[SegmentPart]) -> LexicalRetriever:
        return LexicalRetriever(parts, self.config)


class LexicalRetriever:
    """Exact BM25, a term at a time. Queries come from `encode_queries`: no model is asked."""

    stored_kind: ClassVar[VectorKind] = VectorKind.SPARSE

    def __init__(self, parts: Sequence[SegmentPart], config: LexicalConfig) -> None:
        self._parts = parts
        self._starts = starts_of(parts)
        self._config = config
        self._analyzer = Analyzer(config.analysis)
        self._lock = Lock()  # the stemmer and its cache are not for two threads
        self._vocabulary = _vocabulary(parts)
        self._local = [_places(part.arrays["terms"], self._vocabulary) for part in parts]
        self._n_live = sum(part.n_live for part in parts)
        self._document_frequency = self._count()
        self._norms = self._make_norms()
        term_maps = [np.searchsorted(self._vocabulary, part.arrays["terms"]).astype(np.int64) for part in parts]
        self._forward = ForwardIndex(parts, "frequencies", term_maps, len(self._vocabulary))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def encode_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Term counts of the texts over this collection's vocabulary; unknown terms are dropped."""
        weights, terms, lengths = [], [], []
        for text in texts:
            with self._lock:
                words = self._analyzer(text)
            hashes, counts = np.unique(term_hashes(words), return_counts=True)
            places = _places(self._vocabulary, hashes)
            weights.append(counts[places >= 0].astype(np.float32))
            terms.append(places[places >= 0].astype(np.int32))
            lengths.append(len(terms[-1]))
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        none_f, none_i = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
        return SparseVectors(
            np.concatenate([none_f, *weights]), np.concatenate([none_i, *terms]), offsets, len(self._vocabulary)
        )

    def search(self, queries: SparseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k highest BM25 scores a query; documents that share no term with it are not returned."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        ranked: list[tuple[Array, Array]] = []
        for start, stop in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
            scores = self._score(queries.terms[start:stop], queries.weights[start:stop])
            scores[scores <= 0] = -np.inf
            if usable is not None:
                scores[~usable] = -np.inf
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)

    def vectors(self, rows: I64) -> SparseVectors:
        """Term counts of rows, as `encode_queries` counts those of a query."""
        return self._forward.vectors(rows)

    def stored_form(self, queries: SparseVectors) -> SparseVectors:
        return queries

    def with_params(self, **params: Any) -> Self:
        if unknown := set(params) - {"k1", "b"}:
            raise InvalidInput(f"lexical search takes k1 and b, not {sorted(unknown)}")
        return type(self)(self._parts, replace(self._config, **params))

    def _score(self, terms: Array, weights: F32) -> F32:
        scores = np.zeros(len(self), dtype=np.float32)
        for number, part in enumerate(self._parts):
            first, last = self._starts[number], self._starts[number + 1]
            offsets = part.arrays["offsets"]
            for term, count in zip(terms, weights, strict=True):  # terms ascend: one order of additions everywhere
                place = self._local[number][term]
                if place >= 0:
                    span = slice(int(offsets[place]), int(offsets[place + 1]))
                    weight = float(count) * self._idf(int(self._document_frequency[term]))
                    documents, frequencies = part.arrays["documents"][span], part.arrays["frequencies"][span]
                    add_bm25(scores[first:last], documents, frequencies, self._norms[first:last], weight)
        return scores

    def _idf(self, document_frequency: int) -> float:
        return float(np.log1p((self._n_live - document_frequency + 0.5) / (document_frequency + 0.5)))

    def _count(self) -> I64:
        """Live documents that hold each term of the vocabulary: i64 [V]."""
        out = np.zeros(len(self._vocabulary), dtype=np.int64)
        for part in self._parts:
            offsets = np.asarray(part.arrays["offsets"])
            if part.live is None:
                counts = np.diff(offsets)
            else:
                running = np.concatenate([[0], np.cumsum(part.live[part.arrays["documents"]])])
                counts = running[offsets[1:]] - running[offsets[:-1]]
            out[np.searchsorted(self._vocabulary, part.arrays["terms"])] += counts
        return out

    def _make_norms(self) -> F32:
        lengths = np.concatenate([np.zeros(0, dtype=np.int32), *(part.arrays["lengths"] for part in self._parts)])
        total = sum(int(part.arrays["lengths"][part.live_rows()].sum()) for part in self._parts)
        mean = max(total / max(self._n_live, 1), 1e-9)
        return (self._config.k1 * (1 - self._config.b + self._config.b * lengths / mean)).astype(np.float32)


def _arrays(hashes: U64, places: I64, owners: I64, frequencies: Array, lengths: Array) -> dict[str, Array]:
    """The arrays of a segment from postings whose places index `hashes`; terms that nobody holds are dropped."""
    used = np.bincount(places, minlength=len(hashes)) > 0
    order = np.argsort(hashes, kind="stable")
    order = order[used[order]]
    rank = np.empty(len(hashes), dtype=np.int64)
    rank[order] = np.arange(len(order))
    by_document = np.argsort(owners, kind="stable")
    offsets, documents, tf = invert(
        rank[places[by_document]], owners[by_document], frequencies[by_document], len(order)
    )
    return {"terms": hashes[order], "offsets": offsets, "documents": documents, "frequencies": tf, "lengths": lengths}


def _vocabulary(parts: Sequence[SegmentPart]) -> U64:
    """Every term hash of the parts, ascending: u64 [V]."""
    if len(parts) == 1:
        return np.asarray(parts[0].arrays["terms"])
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *(part.arrays["terms"] for part in parts)]))


def _places(vocabulary: U64, hashes: U64) -> I64:
    """Where each hash stands in the ascending vocabulary, -1 where it is not there: i64 [n]."""
    if not len(vocabulary):
        return np.full(len(hashes), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(vocabulary, hashes), len(vocabulary) - 1)
    return np.where(np.asarray(vocabulary)[places] == hashes, places, -1).astype(np.int64)
