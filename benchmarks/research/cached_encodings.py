"""A judged collection and its encodings, cached between runs under the fingerprint of the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate, strictly_falling
from chamfer.core.types import (
    Candidates,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder

MEASURE = "nDCG@10"


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """A collection with its judged queries."""

    name: str
    documents: list[Document]
    queries: list[Query]
    qrels: list[Qrel]

    def values(self, run: Candidates) -> dict[str, float]:
        """nDCG@10 by query."""
        scored = []
        for number, query in enumerate(self.queries):
            rows, scores = run.of(number)
            falling = strictly_falling(scores)
            scored += [
                ScoredDoc(query.query_id, self.documents[row].doc_id, float(score))
                for row, score in zip(rows, falling, strict=True)
            ]
        return dict(evaluate(scored, self.qrels, [MEASURE]).per_query[MEASURE])


def read(folder: Path, limit: int, document_limit: int) -> JudgedSet:
    """Reads a collection with at most `limit` test queries and about `document_limit` documents (0: all).

    Queries are chosen by the hash of their ids; documents include every judged one.
    """
    name = folder.resolve().name
    qrels = read_qrels(folder, "test")
    judged_ids = {qrel.query_id for qrel in qrels if qrel.relevance > 0}
    queries = [query for query in read_queries(folder) if query.query_id in judged_ids]
    if limit:
        queries = sorted(queries, key=lambda q: blake2b(q.query_id.encode(), digest_size=8).digest())[:limit]
    chosen = {query.query_id for query in queries}
    qrels = [qrel for qrel in qrels if qrel.query_id in chosen]
    documents = list(read_corpus(str(folder)))
    if document_limit:
        relevant_ids = {qrel.doc_id for qrel in qrels}
        documents = [d for d in documents if d.doc_id in relevant_ids] + documents[:document_limit]
        documents = list({d.doc_id: d for d in documents}.values())
    return JudgedSet(name, documents, queries, qrels)


def encoded(
    collection: JudgedSet, name: str, kinds: Sequence[VectorKind], keep: Path | None
) -> tuple[Encoding, Encoding]:
    """(documents, queries) encoded by the named encoder; document vectors are cached in `keep`."""
    encoder = load_encoder(name, DeviceConfig())
    queries = encoder.encode_queries(collection.queries, kinds)
    path = (
        None
        if keep is None
        else keep / f"{collection.name}.{name.replace('/', '_')}.{encoder.spec.fingerprint[:12]}.npz"
    )
    if path is not None and path.exists():
        return _loaded(path, encoder.spec.dims), queries
    documents = encoder.encode_documents(collection.documents, kinds)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **_arrays(documents))  # type: ignore[arg-type]  # the stubs take names for flags
    return documents, queries


def _arrays(encoding: Encoding) -> dict[str, np.ndarray]:
    arrays = {}
    if encoding.dense is not None:
        arrays["dense"] = encoding.dense.values
    if encoding.tokens is not None:
        arrays |= {"tokens": encoding.tokens.values.astype(np.float16), "offsets": encoding.tokens.offsets}
        if encoding.tokens.weights is not None:
            arrays["token_weights"] = encoding.tokens.weights
    if encoding.sparse is not None:
        sparse = encoding.sparse
        arrays |= {"weights": sparse.weights, "terms": sparse.terms, "rows": sparse.offsets}
    return arrays


def _loaded(path: Path, dims: Mapping[VectorKind, int]) -> Encoding:
    with np.load(path) as file:
        n = len(file["rows"]) - 1 if "rows" in file else len(file["offsets"]) - 1
        sparse = None
        if "rows" in file:
            sparse = SparseVectors(file["weights"], file["terms"], file["rows"], dims[VectorKind.SPARSE])
        return Encoding(
            np.zeros(n, dtype=np.int32),
            np.zeros(n, dtype=bool),
            dense=DenseVectors(file["dense"]) if "dense" in file else None,
            tokens=TokenVectors(file["tokens"], file["offsets"], file.get("token_weights"))
            if "tokens" in file
            else None,
            sparse=sparse,
        )
