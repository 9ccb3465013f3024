"""Exact MaxSim as a reranker: token vectors of query and document are encoded on the fly, without an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder, Pair, ScoreKind
from chamfer.core.types import F32, Document, Query, TokenVectors, VectorKind
from chamfer.models.rerankers.pair_scores import refuse_images, scores_of


class MaxSimReranker:
    """The sum over query tokens of the best inner product with a document's tokens (ColBERT, SIGIR 2020)."""

    reads_images = False
    score_kind: ScoreKind = "similarity"

    def __init__(self, encoder: Encoder) -> None:
        if VectorKind.TOKENS not in encoder.spec.dims:
            raise InvalidInput(f"encoder {encoder.spec.name} gives no token vectors, which MaxSim needs")
        self.name = f"maxsim:{encoder.spec.name}"
        self.fingerprint = digest_of("maxsim", encoder.spec.fingerprint)
        self._encoder = encoder

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Every query and document object is encoded once."""
        refuse_images(self.name, pairs)
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        queries = list({id(query): query for query, _ in pairs}.values())
        documents = list({id(document): document for _, document in pairs}.values())
        query_rows = {id(query): row for row, query in enumerate(queries)}
        document_rows = {id(document): row for row, document in enumerate(documents)}
        query_vectors = _tokens(self._encoder.encode_queries(queries, [VectorKind.TOKENS]).tokens)
        document_vectors = _tokens(self._encoder.encode_documents(documents, [VectorKind.TOKENS]).tokens)
        scores = [
            _maxsim(_row(query_vectors, query_rows[id(query)]), _row(document_vectors, document_rows[id(document)]))
            for query, document in pairs
        ]
        return np.asarray(scores, dtype=np.float32)


def _tokens(vectors: TokenVectors | None) -> TokenVectors:
    if vectors is None:
        raise InvalidInput("the encoder gave no token vectors")
    return vectors


def _row(vectors: TokenVectors, row: int) -> F32:
    matrix: F32 = vectors.values[vectors.offsets[row] : vectors.offsets[row + 1]].astype(np.float32, copy=False)
    return matrix


def _maxsim(query: F32, document: F32) -> float:
    """MaxSim of query tokens f32 [S, D] and document tokens f32 [T, D]; 0 without tokens."""
    return float((query @ document.T).max(axis=1).sum()) if len(query) and len(document) else 0.0
