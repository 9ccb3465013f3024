"""BEIR collections in memory, with judged queries and a search pipeline, for experiments on quality.

Encodings can be cached in a folder: `SET.npz` (dense and token vectors) and `NAME-SET.npz` (sparse vectors of the
encoder NAME). Families, retrievers and the pipeline are those of the service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError
from chamfer.core.evaluation import Evaluation, Qrel, ScoredDoc, evaluate, strictly_falling
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    I64,
    Array,
    Bool,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan
from chamfer.service.search.request import SearchRequest, SearchResult

Arrays = dict[str, Array]
CHANNELS = ("dense", "lexical", "multivector", "sparse")


@dataclass(frozen=True)
class JudgedCollection:
    """A collection with the judged queries of one split."""

    name: str
    pipeline: Pipeline
    queries: Sequence[Query]
    qrels: Sequence[Qrel]

    def run(self, plan: Plan, depth: int = 100, batch: int = 64) -> list[ScoredDoc]:
        """The first `depth` hits of every query."""
        scored: list[ScoredDoc] = []
        for start in range(0, len(self.queries), batch):
            batch_queries = self.queries[start : start + batch]
            answers = self.pipeline.run([SearchRequest(query=q.text, k=depth, plan=plan) for q in batch_queries])
            for query, answer in zip(batch_queries, answers, strict=True):
                if isinstance(answer, ChamferError):
                    raise answer
                scored += _scored(query, answer)
        return scored

    def evaluate(self, plan: Plan, measures: Sequence[str]) -> Evaluation:
        return evaluate(self.run(plan), self.qrels, measures)


def open_judged(
    folder: Path, split: str, encoder: str, sparse: str | None, cache: Path | None = None, limit: int = 0
) -> JudgedCollection:
    """The collection in `folder` with the channels dense, lexical, multivector and, with `sparse`, sparse.

    `limit` takes that many of the queries, evenly spaced (0: all). Encodings are read from and written to `cache`.
    """
    documents = list(read_corpus(str(folder)))
    queries = read_queries(folder)
    dense = _load_or_make(cache and cache / f"{folder.name}.npz", lambda: _encode(encoder, documents, queries))
    names = list(map(str, dense["query_ids"]))
    arrays: Arrays = dict(dense)
    if sparse is not None:
        path = cache and cache / f"{sparse.replace('/', '_').replace(':', '_')}-{folder.name}.npz"
        arrays |= {
            f"sparse_{name}": values
            for name, values in _load_or_make(path, lambda: _encode_sparse(sparse, documents, queries)).items()
        }
    qrels = read_qrels(folder, split)
    judged_ids = {qrel.query_id for qrel in qrels} & set(names)
    chosen = [query for query in queries if query.query_id in judged_ids]
    if limit and len(chosen) > limit:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).astype(int)]
    chosen_ids = {query.query_id for query in chosen}
    texts = {query.text: names.index(query.query_id) for query in chosen}
    pipeline = Pipeline(_Memory(documents, arrays), _StoredEncoder(arrays, texts))
    return JudgedCollection(folder.name, pipeline, chosen, [qrel for qrel in qrels if qrel.query_id in chosen_ids])


class _Memory:
    """A collection in memory that implements chamfer.service.search.channels.CollectionView."""

    snapshot, encoder_name, encoder_fingerprint, bytes_per_document = "memory", None, None, 0.0

    def __init__(self, documents: Sequence[Document], arrays: Arrays) -> None:
        self._documents = documents
        encoding = Encoding(
            np.zeros(len(documents), dtype=np.int32),
            np.zeros(len(documents), dtype=bool),
            dense=DenseVectors(arrays["dense"]),
            tokens=TokenVectors(arrays["tokens"], arrays["offsets"]),
            sparse=_sparse(arrays, "") if "sparse_terms" in arrays else None,
        )
        self.channels: dict[str, Any] = {}
        for name in CHANNELS if encoding.sparse is not None else CHANNELS[:-1]:
            family: Any = make_family(name)
            family = family.with_codec(family.learn(encoding))
            part = SegmentPart(dict(family.pack(documents, encoding)), None, len(documents))
            self.channels[name] = _Channel(name, family, family.open([part]))

    n_rows = property(lambda self: len(self._documents))

    def __len__(self) -> int:
        return len(self._documents)

    def bytes_by_part(self) -> dict[str, int]:
        return {}

    def allowed(self, condition: Any) -> Bool | None:
        del condition  # the experiments do not filter
        return None

    def documents(self, rows: I64) -> list[Document]:
        return [self._documents[row] for row in rows.tolist()]

    def doc_ids(self, rows: I64) -> list[str]:
        return [self._documents[row].doc_id for row in rows.tolist()]

    def close(self) -> None:
        """Does nothing, because nothing is open."""


@dataclass(frozen=True)
class _Channel:
    name: str
    family: Any
    retriever: Any


class _StoredEncoder:
    """An encoder that returns stored vectors of queries known in advance."""

    def __init__(self, arrays: Arrays, rows: dict[str, int]) -> None:
        self._rows = rows
        self._dense = DenseVectors(arrays["q_dense"])
        self._tokens = TokenVectors(arrays["q_tokens"], arrays["q_offsets"])
        self._sparse = _sparse(arrays, "q_") if "sparse_terms" in arrays else None
        dims = {VectorKind.DENSE: self._dense.dim, VectorKind.TOKENS: self._tokens.dim}
        if self._sparse is not None:
            dims[VectorKind.SPARSE] = self._sparse.vocabulary
        self.spec = EncoderSpec(name="kept", dims=dims, query_tokens=0, document_tokens=0, fingerprint="kept")

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        rows = [self._rows[query.text] for query in queries]
        return Encoding(
            np.zeros(len(rows), dtype=np.int32),
            np.zeros(len(rows), dtype=bool),
            dense=self._dense.take(rows),
            tokens=self._tokens.take(rows) if VectorKind.TOKENS in kinds else None,
            sparse=self._sparse.take(rows) if self._sparse is not None else None,
        )

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        raise NotImplementedError("the documents are already encoded")


def _scored(query: Query, answer: SearchResult) -> list[ScoredDoc]:
    scores = strictly_falling(np.array([hit.score for hit in answer.hits], dtype=np.float32))
    return [ScoredDoc(query.query_id, hit.doc_id, float(s)) for hit, s in zip(answer.hits, scores, strict=True)]


def _load_or_make(path: Path | None, make: Any) -> Arrays:
    """The arrays at `path`; computed by `make`, and written unless `path` is None, if there are none."""
    if path is not None and path.exists():
        with np.load(path) as file:
            return dict(file)
    arrays: Arrays = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own parameter
    return arrays


def _encode(name: str, documents: Sequence[Document], queries: Sequence[Query]) -> Arrays:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    encoder = load_encoder(name, DeviceConfig())
    kinds = [VectorKind.DENSE, VectorKind.TOKENS]
    document_encoding, query_encoding = (
        encoder.encode_documents(documents, kinds),
        encoder.encode_queries(queries, kinds),
    )
    if (
        document_encoding.dense is None
        or document_encoding.tokens is None
        or query_encoding.dense is None
        or query_encoding.tokens is None
    ):
        raise ValueError(f"encoder {name} lacks dense or token vectors; expected both")
    return {
        "dense": document_encoding.dense.values,
        "tokens": document_encoding.tokens.values.astype(np.float16),
        "offsets": document_encoding.tokens.offsets,
        "q_dense": query_encoding.dense.values,
        "q_tokens": query_encoding.tokens.values,
        "q_offsets": query_encoding.tokens.offsets,
        "query_ids": np.array([query.query_id for query in queries]),
    }


def _encode_sparse(name: str, documents: Sequence[Document], queries: Sequence[Query]) -> Arrays:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    encoder = load_encoder(name, DeviceConfig())
    document_vectors = encoder.encode_documents(documents, [VectorKind.SPARSE]).sparse
    query_vectors = encoder.encode_queries(queries, [VectorKind.SPARSE]).sparse
    if document_vectors is None or query_vectors is None:
        raise ValueError(f"encoder {name} returns no sparse vectors; --sparse expects a sparse encoder")
    return {
        "offsets": document_vectors.offsets,
        "terms": document_vectors.terms,
        "weights": document_vectors.weights,
        "q_offsets": query_vectors.offsets,
        "q_terms": query_vectors.terms,
        "q_weights": query_vectors.weights,
        "vocabulary": np.array(document_vectors.vocabulary),
    }


def _sparse(arrays: Arrays, side: str) -> SparseVectors:
    terms, weights, offsets = (arrays[f"sparse_{side}{name}"] for name in ("terms", "weights", "offsets"))
    return SparseVectors(weights, terms, offsets, int(arrays["sparse_vocabulary"]))
