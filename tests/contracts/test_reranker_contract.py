"""What every reranker promises, over every implementation: aligned, unsorted, independent of the other pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_encoders import HashEncoder
from support_judges import tiny_text_judge
from support_models import tiny_transformer
from support_rerank_server import rerank_server

from chamfer.core.protocols import PairReranker
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_reranker
from chamfer.models.rerankers.maxsim import MaxSimReranker
from chamfer.models.rerankers.remote import RemoteConfig, RemoteReranker
from chamfer.models.rerankers.score_cache import CachedReranker, ScoreCache

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about tiny models

QUERY, OTHER = Query("q", "w1 w2 fox"), Query("p", "w9 crow")
DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(["w1 w3", "fox w2", "", "w9 crow w1", "w5 " * 70])]
CONFIG = DeviceConfig(device="cpu", precision="fp32", batch_tokens=256)


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], Any]]]:
    folder = tmp_path_factory.mktemp("rerankers")
    cross = tiny_transformer(folder / "cross", "BertForSequenceClassification", num_labels=1)
    judge: Path = tiny_text_judge(folder / "judge")
    with rerank_server() as server:
        yield {
            "cross_encoder": lambda: load_reranker(str(cross), CONFIG),
            "cached": lambda: CachedReranker(load_reranker(str(cross), CONFIG), ScoreCache(1 << 20)),  # type: ignore[arg-type]  # it judges pairs
            "mini-cross": lambda: load_reranker("mini-cross", CONFIG),
            "maxsim": lambda: MaxSimReranker(HashEncoder()),
            "yes_no": lambda: load_reranker(f"yes_no:{judge}", CONFIG),
            "true_false": lambda: load_reranker(f"true_false:{judge}", CONFIG),
            "unime": lambda: load_reranker(f"unime:{judge}", CONFIG),
            "remote": lambda: RemoteReranker("far", RemoteConfig(url=server.url, protocol="vllm-score")),
        }


PAIRWISE = ("cross_encoder", "cached", "mini-cross", "maxsim", "yes_no", "true_false", "remote")
EVERY = (*PAIRWISE, "unime")


@pytest.fixture
def reranker(request: pytest.FixtureRequest, makers: dict[str, Callable[[], Any]]) -> Iterator[Any]:
    made = makers[request.param]()
    yield made
    if hasattr(made, "close"):
        made.close()


@pytest.mark.parametrize("reranker", EVERY, indirect=True)
def test_scores_are_finite_float32_aligned_and_empty_for_no_documents(reranker: Any) -> None:
    scores = reranker.score(QUERY, DOCUMENTS)
    assert scores.shape == (len(DOCUMENTS),)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) > 2
    assert reranker.score(QUERY, []).shape == (0,)


@pytest.mark.parametrize("reranker", EVERY, indirect=True)
def test_its_attributes_are_complete(reranker: Any) -> None:
    assert reranker.name
    assert len(reranker.fingerprint) == 64
    assert reranker.score_kind in ("logit", "probability", "similarity", "list")
    assert reranker.reads_images in (True, False)
    assert isinstance(reranker, PairReranker) == (reranker.score_kind != "list")


@pytest.mark.parametrize("reranker", PAIRWISE, indirect=True)
def test_a_pairs_score_does_not_depend_on_the_other_pairs(reranker: Any) -> None:
    together = reranker.score(QUERY, DOCUMENTS)
    turned = reranker.score(QUERY, DOCUMENTS[::-1])[::-1]
    mixed = reranker.score_pairs([pair for d in DOCUMENTS for pair in ((OTHER, d), (QUERY, d))])
    np.testing.assert_allclose(turned, together, atol=2e-4)
    np.testing.assert_allclose(mixed[1::2], together, atol=2e-4)
    np.testing.assert_allclose(mixed[::2], reranker.score(OTHER, DOCUMENTS), atol=2e-4)


def test_fingerprints_are_distinct_and_unchanged_by_a_cache(makers: dict[str, Callable[[], Any]]) -> None:
    fingerprints = {name: make().fingerprint for name, make in makers.items()}
    assert fingerprints["cached"] == fingerprints.pop("cross_encoder")
    assert len(set(fingerprints.values())) == len(fingerprints)
