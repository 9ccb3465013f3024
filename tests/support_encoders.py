"""An encoder for tests that need vectors but no model, and synthetic documents."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np

from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    AnchorScores,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)

_VOCABULARY = 500


class HashEncoder:
    """Maps every word to a pseudo-random unit vector; dense is their normalised sum; sparse has three terms per word.

    Deterministic, fast, and independent of the batch.
    """

    def __init__(self, dim: int = 16, limit: int = 64, name: str = "hash", pause_seconds: float = 0.0) -> None:
        self.spec = EncoderSpec(
            name=name,
            dims={VectorKind.DENSE: dim, VectorKind.TOKENS: dim, VectorKind.SPARSE: _VOCABULARY},
            query_tokens=limit,
            document_tokens=limit,
            fingerprint=blake2b(f"{name} {dim} {limit}".encode(), digest_size=32).hexdigest(),
        )
        self.calls = 0
        self._dim = dim
        self._limit = limit
        self._pause_seconds = pause_seconds

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        return self._encode([query.text for query in queries], kinds)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        return self._encode([document.content for document in documents], kinds)

    def _encode(self, texts: Sequence[str], kinds: Collection[VectorKind]) -> Encoding:
        self.calls += 1
        time.sleep(self._pause_seconds)
        words = [text.lower().split() for text in texts]
        matrices = [self._matrix(text_words[: self._limit]) for text_words in words]
        n_tokens = np.array([len(text_words) for text_words in words], dtype=np.int32)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
        dense = np.array([self._sum(matrix) for matrix in matrices], dtype=np.float32).reshape(-1, self._dim)
        return Encoding(
            n_tokens,
            n_tokens > self._limit,
            dense=DenseVectors(dense) if VectorKind.DENSE in kinds else None,
            tokens=TokenVectors(np.concatenate([self._empty(), *matrices]), offsets)
            if VectorKind.TOKENS in kinds
            else None,
            sparse=self._sparse(words) if VectorKind.SPARSE in kinds else None,
            anchors=self._anchors(dense) if VectorKind.ANCHORS in kinds else None,
        )

    def _matrix(self, words: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(word) for word in words]) if words else self._empty()

    def _sparse(self, words: Sequence[Sequence[str]]) -> SparseVectors:
        weights, terms, offsets = [np.empty(0, np.float32)], [np.empty(0, np.int32)], [0]
        for text_words in words:
            rows = np.zeros(_VOCABULARY, dtype=np.float32)
            for word in text_words[: self._limit]:
                digest = blake2b(word.encode(), digest_size=12).digest()
                for term, size in zip(np.frombuffer(digest[:6], "<u2"), np.frombuffer(digest[6:], "<u2"), strict=True):
                    rows[term % _VOCABULARY] += (1 + size) / 65536
            terms.append(np.flatnonzero(rows).astype(np.int32))
            weights.append(np.log1p(rows[terms[-1]]))
            offsets.append(offsets[-1] + len(terms[-1]))
        return SparseVectors(np.concatenate(weights), np.concatenate(terms), np.array(offsets), _VOCABULARY)

    def _anchors(self, dense: np.ndarray) -> AnchorScores:
        """Scores with eight fixed queries: those of a reranker that computes the dense inner product."""
        fixed = np.stack([self._vector(f"anchor {i}") for i in range(8)])
        values = (dense[:, None, :] * fixed[None]).sum(
            axis=-1, dtype=np.float32
        )  # summed by row: independent of the batch
        return AnchorScores(DenseVectors(values), tuple(f"anchor {i}" for i in range(8)), "hash reranker")

    def _vector(self, word: str) -> np.ndarray:
        seed = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        vector = np.random.default_rng(seed).standard_normal(self._dim).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def _empty(self) -> np.ndarray:
        return np.empty((0, self._dim), dtype=np.float32)

    def _sum(self, matrix: np.ndarray) -> np.ndarray:
        total = matrix.sum(axis=0) if len(matrix) else np.zeros(self._dim, dtype=np.float32)
        return total / max(float(np.linalg.norm(total)), 1e-9)


def make_documents(n: int, seed: int = 0, first: int = 0) -> list[Document]:
    """n documents from a vocabulary of 200 words; some are empty, some repeated; metadata of every type."""
    rng = np.random.default_rng(seed)
    documents = []
    for i in range(first, first + n):
        words = [f"w{w}" for w in rng.zipf(1.4, rng.integers(0, 30)) if w < 200]
        metadata = {"year": int(1900 + rng.integers(0, 100)), "lang": str(rng.choice(["en", "de"])), "even": i % 2 == 0}
        documents.append(Document(f"d{i}", " ".join(words), f"title {i % 7}" if i % 3 else "", metadata))
    return documents
