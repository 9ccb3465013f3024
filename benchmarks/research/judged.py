"""BEIR collections in memory, with judged queries behind a search pipeline: what experiments on quality run over.

Encodings are made once and may be kept: `DIR/SET.npz` (dense and token vectors), `DIR/NAME-SET.npz` (sparse vectors of
the encoder NAME). All else is the code that serves: families, retrievers, pipeline.
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

Kept = dict[str, Array]
CHANNELS = ("dense", "lexical", "multivector", "sparse")


@dataclass(frozen=True)
class Judged:
    """One collection with the queries that one split judges."""

    name: str
    pipeline: Pipeline
    queries: Sequence[Query]
    qrels: Sequence[Qrel]

    def run(self, plan: Plan, depth: int = 100, batch: int = 64) -> list[ScoredDoc]:
        """The first `depth` hits of every query."""
        out: list[ScoredDoc] = []
        for start in range(0, len(self.queries), batch):
            some = self.queries[start : start + batch]
            answers = self.pipeline.run([SearchRequest(query=q.text, k=depth, plan=plan) for q in some])
            for query, answer in zip(some, answers, strict=True):
                if isinstance(answer, ChamferError):
                    raise answer
                out += _scored(query, answer)
        return out

    def evaluate(self, plan: Plan, measures: Sequence[str]) -> Evaluation:
        return evaluate(self.run(plan), self.qrels, measures)


def open_judged(
    folder: Path, split: str, encoder: str, sparse: str | None, kept: Path | None = None, most: int = 0
) -> Judged:
    """The collection in `folder` with the channels dense, lexical, multivector and, with `sparse`, sparse.

    `most` takes that many of the queries, evenly spaced (0: all). `kept` is where encodings are read and written.
    """
    documents = list(read_corpus(str(folder)))
    queries = read_queries(folder)
    dense = _kept(kept and kept / f"{folder.name}.npz", lambda: _encode(encoder, documents, queries))
    names = list(map(str, dense["query_ids"]))
    offered: Kept = dict(dense)
    if sparse is not None:
        path = kept and kept / f"{sparse.replace('/', '_').replace(':', '_')}-{folder.name}.npz"
        offered |= {
            f"sparse_{name}": array
            for name, array in _kept(path, lambda: _encode_sparse(sparse, documents, queries)).items()
        }
    qrels = read_qrels(folder, split)
    judged = {qrel.query_id for qrel in qrels} & set(names)
    chosen = [query for query in queries if query.query_id in judged]
    if most and len(chosen) > most:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).astype(int)]
    asked = {query.query_id for query in chosen}
    texts = {query.text: names.index(query.query_id) for query in chosen}
    pipeline = Pipeline(_Memory(documents, offered), _Kept(offered, texts))
    return Judged(folder.name, pipeline, chosen, [qrel for qrel in qrels if qrel.query_id in asked])


class _Memory:
    """An opened collection that lies in memory (chamfer.service.search.channels.CollectionView)."""

    snapshot, encoder_name, encoder_fingerprint, bytes_per_document = "memory", None, None, 0.0

    def __init__(self, documents: Sequence[Document], kept: Kept) -> None:
        self._documents = documents
        encoding = Encoding(
            np.zeros(len(documents), dtype=np.int32),
            np.zeros(len(documents), dtype=bool),
            dense=DenseVectors(kept["dense"]),
            tokens=TokenVectors(kept["tokens"], kept["offsets"]),
            sparse=_sparse(kept, "") if "sparse_terms" in kept else None,
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
        del condition  # nobody filters here
        return None

    def documents(self, rows: I64) -> list[Document]:
        return [self._documents[row] for row in rows.tolist()]

    def doc_ids(self, rows: I64) -> list[str]:
        return [self._documents[row].doc_id for row in rows.tolist()]

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class _Channel:
    name: str
    family: Any
    retriever: Any


class _Kept:
    """An encoder that knows its queries beforehand."""

    def __init__(self, kept: Kept, rows: dict[str, int]) -> None:
        self._rows = rows
        self._dense = DenseVectors(kept["q_dense"])
        self._tokens = TokenVectors(kept["q_tokens"], kept["q_offsets"])
        self._sparse = _sparse(kept, "q_") if "sparse_terms" in kept else None
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
        raise NotImplementedError("documents are in memory already")


def _scored(query: Query, answer: SearchResult) -> list[ScoredDoc]:
    scores = strictly_falling(np.array([hit.score for hit in answer.hits], dtype=np.float32))
    return [ScoredDoc(query.query_id, hit.doc_id, float(s)) for hit, s in zip(answer.hits, scores, strict=True)]


def _kept(path: Path | None, make: Any) -> Kept:
    """The arrays at `path`, made and written where there are none."""
    if path is not None and path.exists():
        with np.load(path) as file:
            return dict(file)
    made: Kept = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **made)  # type: ignore[arg-type]  # numpy's stub takes the names for its own parameter
    return made


def _encode(name: str, documents: Sequence[Document], queries: Sequence[Query]) -> Kept:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    encoder = load_encoder(name, DeviceConfig())
    kinds = [VectorKind.DENSE, VectorKind.TOKENS]
    own, asked = encoder.encode_documents(documents, kinds), encoder.encode_queries(queries, kinds)
    if own.dense is None or own.tokens is None or asked.dense is None or asked.tokens is None:
        raise ValueError(f"{name} gives no dense and token vectors")
    return {
        "dense": own.dense.values,
        "tokens": own.tokens.values.astype(np.float16),
        "offsets": own.tokens.offsets,
        "q_dense": asked.dense.values,
        "q_tokens": asked.tokens.values,
        "q_offsets": asked.tokens.offsets,
        "query_ids": np.array([query.query_id for query in queries]),
    }


def _encode_sparse(name: str, documents: Sequence[Document], queries: Sequence[Query]) -> Kept:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    encoder = load_encoder(name, DeviceConfig())
    own = encoder.encode_documents(documents, [VectorKind.SPARSE]).sparse
    asked = encoder.encode_queries(queries, [VectorKind.SPARSE]).sparse
    if own is None or asked is None:
        raise ValueError(f"{name} gives no sparse vectors")
    return {
        "offsets": own.offsets,
        "terms": own.terms,
        "weights": own.weights,
        "q_offsets": asked.offsets,
        "q_terms": asked.terms,
        "q_weights": asked.weights,
        "vocabulary": np.array(own.vocabulary),
    }


def _sparse(kept: Kept, side: str) -> SparseVectors:
    terms, weights, offsets = (kept[f"sparse_{side}{name}"] for name in ("terms", "weights", "offsets"))
    return SparseVectors(weights, terms, offsets, int(kept["sparse_vocabulary"]))
