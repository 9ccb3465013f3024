"""Inference-free sparse models: documents through the network, queries through the tokenizer and a table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_models import WORDS, tiny_inference_free

from chamfer.core.types import Document, Query, VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.collection.collection import Collection
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder

pytestmark = pytest.mark.filterwarnings("ignore")  # sentence-transformers and transformers warn about tiny models

IDF = np.linspace(0.5, 4.0, len(WORDS), dtype=np.float32)
DOCUMENTS = [Document(str(i), f"w{i} w{(7 * i) % 60} w3") for i in range(12)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_inference_free(tmp_path_factory.mktemp("free"), IDF)
    return load_encoder(f"sparse:{folder}", DeviceConfig(device="cpu"))


def test_a_query_has_each_of_its_words_once_weighted_by_idf(encoder: Any) -> None:
    encoded = encoder.encode_queries([Query("q", "w9 w2 w9")], [VectorKind.SPARSE]).sparse
    expected = sorted(WORDS.index(word) for word in ("w2", "w9"))
    assert encoded.terms.tolist() == expected, "no special tokens, presence and not count"
    np.testing.assert_allclose(encoded.weights, IDF[expected], rtol=1e-6)


def test_a_collection_of_such_vectors_is_searched_exactly(encoder: Any, tmp_path: Path) -> None:
    build(DOCUMENTS, tmp_path / "c", encoder=encoder, config=BuildConfig(channels=("sparse",), block_documents=5))
    query = encoder.encode_queries([Query("q", "w3 w7")], [VectorKind.SPARSE]).sparse
    stored = encoder.encode_documents(DOCUMENTS, [VectorKind.SPARSE]).sparse
    scores = np.zeros(len(DOCUMENTS))
    for i in range(len(DOCUMENTS)):
        span = slice(stored.offsets[i], stored.offsets[i + 1])
        row = dict(zip(stored.terms[span].tolist(), stored.weights[span].tolist(), strict=True))
        scores[i] = sum(w * row.get(t, 0.0) for t, w in zip(query.terms.tolist(), query.weights.tolist(), strict=True))
    with Collection.open(tmp_path / "c") as collection:
        hits = collection.channels["sparse"].retriever.search(query, 5)
    np.testing.assert_allclose(hits.scores[0], np.sort(scores)[::-1][:5], rtol=1e-5)
    np.testing.assert_allclose(scores[hits.rows[0]], hits.scores[0], rtol=1e-5)
