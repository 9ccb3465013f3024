"""Models from elsewhere through sentence-transformers: roles, order, truncation, fingerprints, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_models import tiny_splade, tiny_transformer

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import CATALOGUE, load_encoder, load_reranker

pytestmark = pytest.mark.filterwarnings("ignore")  # sentence-transformers and transformers warn about tiny models

CONFIG = DeviceConfig(device="cpu", batch_tokens=64)
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20", "w1 w1", "w30 w31 w32", ""]
DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXTS)]
LONG = "w1 " * 60


@pytest.fixture(scope="module")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("dense")
    transformer = Transformer(str(tiny_transformer(folder / "bert")))
    model = SentenceTransformer(
        modules=[transformer, Pooling(32)], prompts={"query": "query : ", "document": "passage : "}, device="cpu"
    )
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def tokens_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import MultiVectorEncoder

    folder = tmp_path_factory.mktemp("tokens")
    model = MultiVectorEncoder(str(tiny_transformer(folder / "bert")), device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def sparse_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_splade(tmp_path_factory.mktemp("sparse"))


@pytest.fixture(scope="module")
def cross_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    return tiny_transformer(folder / "bert", "BertForSequenceClassification", num_labels=1)


def test_a_dense_model_gives_sentence_transformers_own_vectors_with_roles(dense_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(dense_path), device="cpu")
    encoder = load_encoder(f"dense:{dense_path}", CONFIG)
    document_vectors = encoder.encode_documents(DOCUMENTS, [VectorKind.DENSE]).dense
    assert document_vectors is not None
    np.testing.assert_allclose(document_vectors.values, reference.encode_document(TEXTS), atol=1e-5)
    query_vectors = encoder.encode_queries([Query("q", "w1 w2")], [VectorKind.DENSE]).dense
    assert query_vectors is not None
    np.testing.assert_allclose(query_vectors.values, reference.encode_query(["w1 w2"]), atol=1e-6)
    assert not np.allclose(query_vectors.values, reference.encode_document(["w1 w2"]), atol=1e-3), "the prompts differ"


def test_a_multivector_model_gives_sentence_transformers_own_tokens(tokens_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    reference: Any = MultiVectorEncoder(str(tokens_path), device="cpu")
    encoder = load_encoder(f"multivector:{tokens_path}", CONFIG)
    encoded = encoder.encode_documents(DOCUMENTS[:5], [VectorKind.TOKENS]).tokens
    assert encoded is not None
    for i, matrix in enumerate(reference.encode_document(TEXTS[:5], convert_to_numpy=True)):
        document_tokens = encoded.values[encoded.offsets[i] : encoded.offsets[i + 1]]
        np.testing.assert_allclose(document_tokens, matrix, atol=1e-5)
    assert encoded.dim == encoder.spec.dims[VectorKind.TOKENS]


def test_a_sparse_model_gives_sentence_transformers_own_weights(sparse_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    reference: Any = SparseEncoder(str(sparse_path), device="cpu")
    encoder = load_encoder(f"sparse:{sparse_path}", CONFIG)
    encoded = encoder.encode_documents(DOCUMENTS[:5], [VectorKind.SPARSE]).sparse
    assert encoded is not None
    expected = reference.encode_document(TEXTS[:5], convert_to_sparse_tensor=False).numpy()
    for i in range(5):
        row = np.zeros(encoded.vocabulary, dtype=np.float32)
        span = slice(encoded.offsets[i], encoded.offsets[i + 1])
        row[encoded.terms[span]] = encoded.weights[span]
        np.testing.assert_allclose(row, expected[i], atol=1e-5)


def test_a_query_has_the_same_bits_in_any_batch(dense_path: Path) -> None:
    encoder = load_encoder(f"dense:{dense_path}", CONFIG)
    queries = [Query(str(i), text or "w9") for i, text in enumerate(TEXTS * 3)]
    together = encoder.encode_queries(queries, [VectorKind.DENSE]).dense
    assert together is not None
    for i, query in enumerate(queries):
        alone = encoder.encode_queries([query], [VectorKind.DENSE]).dense
        assert alone is not None
        np.testing.assert_array_equal(alone.values[0], together.values[i])


def test_truncation_is_counted(dense_path: Path) -> None:
    encoded = load_encoder(f"dense:{dense_path}", CONFIG).encode_documents([Document("a", LONG), *DOCUMENTS], [])
    assert encoded.truncated.tolist() == [True] + [False] * len(DOCUMENTS)
    assert encoded.n_tokens[0] == 62


def test_the_fingerprint_follows_weights_and_prompts(dense_path: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    first = load_encoder(f"dense:{dense_path}", CONFIG).spec.fingerprint
    assert load_encoder(f"dense:{dense_path}", CONFIG).spec.fingerprint == first
    model = SentenceTransformer(str(dense_path), device="cpu")
    model.prompts["query"] = "other : "
    model.save(str(tmp_path / "prompt"))
    assert load_encoder(f"dense:{tmp_path / 'prompt'}", CONFIG).spec.fingerprint != first
    model = SentenceTransformer(str(dense_path), device="cpu")
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 1e-3
    model.save(str(tmp_path / "weight"))
    assert load_encoder(f"dense:{tmp_path / 'weight'}", CONFIG).spec.fingerprint != first


def test_a_cross_encoder_scores_in_the_order_of_its_input(cross_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    reference = CrossEncoder(str(cross_path), device="cpu")
    reranker = load_reranker(f"cross_encoder:{cross_path}", replace(CONFIG, precision="fp32"))
    scores = reranker.score(Query("q", "w1 w2"), DOCUMENTS)
    np.testing.assert_allclose(scores, reference.predict([("w1 w2", text) for text in TEXTS]), atol=1e-5)
    assert len(set(scores.tolist())) > 3
    assert reranker.score(Query("q", "w1"), []).shape == (0,)


def test_a_cross_encoder_with_several_labels_is_refused(tmp_path: Path) -> None:
    tiny_transformer(tmp_path / "bert", "BertForSequenceClassification", num_labels=3)
    with pytest.raises(InvalidInput, match="3 labels"):
        load_reranker(str(tmp_path / "bert"), CONFIG)


@pytest.mark.parametrize("name", ["mnii", "all-MiniLM", "dense:", "colbert:x"])
def test_an_unknown_encoder_name_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match="Catalogue: mini"):
        load_encoder(name, CONFIG)


def test_a_hub_name_without_permission_to_download_says_which_setting_allows_it() -> None:
    with pytest.raises(NotFound, match="allow_download"):
        load_encoder("dense:some/model-that-is-not-here", CONFIG)


def test_a_model_of_another_kind_is_refused_for_images(dense_path: Path) -> None:
    encoder = load_encoder(f"dense:{dense_path}", CONFIG)
    with pytest.raises(InvalidInput, match="has an image"):
        encoder.encode_queries([Query("q", "w1", b"png")], [VectorKind.DENSE])
    with pytest.raises(InvalidInput, match=r"not .*tokens"):
        encoder.encode_documents(DOCUMENTS, [VectorKind.TOKENS])


def test_every_catalogue_entry_gives_the_kinds_it_names(tmp_path: Path) -> None:
    for name, entry in CATALOGUE.items():
        encoder = load_encoder(name, DeviceConfig(cache_dir=tmp_path))
        assert set(encoder.spec.dims) == set(entry.kinds), name
        assert encoder.spec.name == name
