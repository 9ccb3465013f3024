"""The shipped models open and pass the simplest test of their purpose."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.types import Document, Query, SparseVectors, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import RERANKERS, WEIGHTS, load_encoder, load_reranker

DOCUMENTS = [
    Document("0", "The fox lost his tail in the ice when he fished through a hole in the frozen lake."),
    Document("1", "The princess would not laugh, and whoever made her laugh should have half the kingdom."),
    Document("2", "Lift of a wing in a propeller slipstream at several angles of attack."),
]


@pytest.mark.parametrize("name", RERANKERS)
def test_a_shipped_reranker_puts_the_answer_first_with_the_same_bits_in_any_batch(name: str, tmp_path: Path) -> None:
    reranker = load_reranker(name, DeviceConfig(cache_dir=tmp_path))
    for query, best in (("Why did the fox lose his tail?", 0), ("wing slipstream lift distribution", 2)):
        scores = reranker.score(Query("q", query), DOCUMENTS)
        assert int(np.argmax(scores)) == best
        np.testing.assert_array_equal(reranker.score(Query("q", query), DOCUMENTS[1:2]), scores[1:2])


def test_mini_late_finds_the_answer_with_unit_document_tokens_and_when_it_is_pooled(tmp_path: Path) -> None:
    config = DeviceConfig(cache_dir=tmp_path)
    for name, most in (("mini-late", 256), ("mini-late+w8x32", 32), ("mini-late+w4x8", 8)):
        encoder = load_encoder(name, config)
        documents = encoder.encode_documents(DOCUMENTS, (VectorKind.TOKENS,)).tokens
        assert documents is not None
        assert np.diff(documents.offsets).max() <= most
        np.testing.assert_allclose(np.linalg.norm(documents.values, axis=1), 1, atol=1e-5)
        for query, best in (("Why did the fox lose his tail?", 0), ("wing slipstream lift distribution", 2)):
            query_tokens = encoder.encode_queries([Query("q", query)], (VectorKind.TOKENS,)).tokens
            assert query_tokens is not None
            similar = query_tokens.values @ documents.values.T
            scores = [similar[:, a:b].max(axis=1).sum() for a, b in pairwise(documents.offsets)]
            assert int(np.argmax(scores)) == best


def test_mini_sparse_gives_the_dense_vectors_of_mini_and_matches_related_words(tmp_path: Path) -> None:
    config = DeviceConfig(cache_dir=tmp_path)
    sparse, mini = (load_encoder(name, config) for name in ("mini-sparse", "mini"))
    by_sparse = sparse.encode_documents(DOCUMENTS, (VectorKind.DENSE, VectorKind.SPARSE))
    by_mini = mini.encode_documents(DOCUMENTS, (VectorKind.DENSE,))
    assert by_sparse.dense is not None
    assert by_mini.dense is not None
    np.testing.assert_array_equal(by_sparse.dense.values, by_mini.dense.values)
    for query, best in (("foxes", 0), ("slipstreams", 2), ("royal", 1)):  # no document says royal
        scores = _scores(sparse.encode_queries([Query("q", query)], (VectorKind.SPARSE,)).sparse, by_sparse.sparse)
        assert int(np.argmax(scores)) == best
        assert scores[best] > 0


def _scores(query: SparseVectors | None, documents: SparseVectors | None) -> np.ndarray:
    assert query is not None
    assert documents is not None
    weights = dict(zip(query.terms.tolist(), query.weights.tolist(), strict=True))
    shares = np.array([weights.get(term, 0.0) for term in documents.terms.tolist()]) * documents.weights
    return np.array([shares[a:b].sum() for a, b in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)])


def test_all_shipped_weights_together_stay_below_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) < 25_000_000
