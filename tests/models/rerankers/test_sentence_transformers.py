"""Cross-encoders on every backend against the library's own prediction; hostile inputs; the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_judges import picture
from support_models import tiny_transformer

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig, decide
from chamfer.models.rerankers.sentence_transformers import load_cross_encoder

pytestmark = pytest.mark.filterwarnings("ignore")  # sentence-transformers and transformers warn about tiny models

FP32 = DeviceConfig(device="cpu", precision="fp32", batch_tokens=96)
TEXTS = ["w1 w2 w3", "w4", " ".join(f"w{i}" for i in range(60)), "w1 w1 unknown", "", "w30 w31 w32 w33 " * 5]
DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]
QUERY = Query("q", "w1 w2")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("cross") / "bert", "BertForSequenceClassification", num_labels=1)


def predicted(path: Path, query: str = QUERY.text, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(path), device="cpu", **options).predict([(query, text) for text in TEXTS])


@pytest.mark.parametrize("backend", ["torch", "openvino", "onnx"])
def test_a_backend_gives_the_librarys_scores(path: Path, backend: Any) -> None:
    scores = load_cross_encoder(str(path), replace(FP32, backend=backend)).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, predicted(path), atol=1e-5)


def test_int8_is_near_the_librarys_scores_and_is_not_the_same(path: Path) -> None:
    int8 = load_cross_encoder(str(path), replace(FP32, backend="onnx", precision="int8")).score(QUERY, DOCUMENTS)
    assert 0 < np.abs(int8 - predicted(path)).max() < 0.1


def test_a_converted_model_is_kept_and_read_again(path: Path, tmp_path: Path) -> None:
    for backend in ("openvino", "onnx"):
        config = replace(FP32, backend=backend, cache_dir=tmp_path)  # type: ignore[arg-type]  # one of the literals
        first = load_cross_encoder(str(path), config).score(QUERY, DOCUMENTS)
        assert np.array_equal(load_cross_encoder(str(path), config).score(QUERY, DOCUMENTS), first)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("settings", [{"precision": "int8"}, {"backend": "onnx", "precision": "bf16"}])
def test_a_precision_that_a_backend_lacks_is_refused(settings: Any) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        decide(DeviceConfig(device="cpu", **settings))


def test_the_models_own_activation_is_applied_and_named(tmp_path: Path) -> None:
    bare = tiny_transformer(
        tmp_path / "bert",
        "BertForSequenceClassification",
        num_labels=1,
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )
    logits = load_cross_encoder(str(bare), FP32)
    assert logits.score_kind == "logit"
    scores = logits.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, predicted(bare), atol=1e-4)
    assert scores.min() < 0


def test_a_score_has_the_same_bits_alone_and_in_any_batch(path: Path) -> None:
    reranker = load_cross_encoder(str(path), replace(FP32, backend="openvino"))
    together = reranker.score(QUERY, DOCUMENTS)
    assert [float(reranker.score(QUERY, [d])[0]) for d in DOCUMENTS] == together.tolist()
    pairs = [(Query("p", "w9"), DOCUMENTS[2]), *[(QUERY, d) for d in reversed(DOCUMENTS)]]
    assert reranker.score_pairs(pairs)[1:].tolist() == together[::-1].tolist()


def test_the_longer_text_is_cut_first(path: Path) -> None:
    query = "w5 " * 30
    reranker = load_cross_encoder(str(path), FP32)
    np.testing.assert_allclose(reranker.score(Query("q", query), DOCUMENTS), predicted(path, query), atol=1e-5)


def test_ten_megabytes_of_text_score_like_their_beginning(path: Path) -> None:
    reranker = load_cross_encoder(str(path), FP32)
    huge, start = Document("h", "w7 w8 " * 1_700_000), Document("s", "w7 w8 " * 100)
    assert reranker.score(QUERY, [huge]).tolist() == reranker.score(QUERY, [start]).tolist()


def test_text_with_lone_surrogates_is_scored(path: Path) -> None:
    assert np.isfinite(load_cross_encoder(str(path), FP32).score(Query("q", "w1 \ud800"), [Document("d", "\udfff w2")]))


def test_images_are_refused_where_text_alone_is_read(path: Path) -> None:
    reranker = load_cross_encoder(str(path), FP32)
    with pytest.raises(InvalidInput, match="the query has an image"):
        reranker.score(Query("q", "", image=picture(0)), DOCUMENTS)
    with pytest.raises(InvalidInput, match="'d' is an image"):
        reranker.score(QUERY, [Document("d", image=picture(0))])


def test_a_model_that_gives_nan_raises_and_names_the_document(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = tiny_transformer(tmp_path / "bert", "BertForSequenceClassification", num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[5 + 7] = float("nan")  # the word w7
    model.save_pretrained(folder)
    reranker = load_cross_encoder(str(folder), FP32)
    with pytest.raises(Internal, match="'b'"):
        reranker.score(QUERY, [Document("a", "w1"), Document("b", "w7")])
    scores = reranker.score_pairs([(QUERY, Document("a", "w1")), (QUERY, Document("b", "w7"))])
    assert np.isnan(scores).tolist() == [False, True]


def test_the_fingerprint_changes_with_the_activation(path: Path, tmp_path: Path) -> None:
    bare = tiny_transformer(
        tmp_path / "bert",
        "BertForSequenceClassification",
        num_labels=1,
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )
    one, same, other = (load_cross_encoder(str(p), FP32).fingerprint for p in (path, path, bare))
    assert one == same != other
