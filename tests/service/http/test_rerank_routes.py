"""The rerank endpoints as their clients see them: the real Cohere client, and plain HTTP for Jina, vLLM and TEI."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from support_judges import picture
from support_service import LengthReranker, PairReranker, client_of, running_server

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.service.http.app import create_app
from chamfer.service.http.config import PairBatchingConfig, RerankingConfig, ServerConfig
from chamfer.service.http.rerank_responses import activated, ranked, raw

TEXTS = ["crow", "fox tail", "a", "the longest text of all", "fox tail"]
ORDER = [3, 1, 4, 0, 2]


class Judge(PairReranker):
    """Logits by the length of the text, so that activation is visible."""

    def __init__(self, kind: str = "logit", name: str = "judge") -> None:
        super().__init__()
        self.score_kind = kind
        self.name = name

    def score_pairs(self, pairs: Any) -> Any:
        return super().score_pairs(pairs) / 10


def rerank_app(rerankers: Mapping[str, Any] | None = None, **config: Any) -> Any:
    import structlog

    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    loaded = {"judge": Judge()} if rerankers is None else rerankers
    loads = {name: (lambda reranker=reranker: reranker) for name, reranker in loaded.items()}
    settings = ServerConfig(reranking=RerankingConfig(**config))
    return create_app({}, settings, lambda _: None, rerankers=loads, log=log)  # type: ignore[arg-type,return-value]  # no collection


def with_service(
    test: Callable[[Any], Awaitable[None]], rerankers: Mapping[str, Any] | None = None, **config: Any
) -> None:
    async def body() -> None:
        async with client_of(rerank_app(rerankers, **config)) as client:
            await test(client)

    asyncio.run(body())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server(rerank_app({"judge": Judge(), "text": TextOnly()})) as running:
        yield running


class TextOnly(Judge):
    reads_images = False


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


@pytest.mark.filterwarnings("ignore")  # of the client's own models
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_cohere_client_reads_the_response(address: str, version: str) -> None:
    import cohere

    kind = cohere.Client if version == "v1" else cohere.ClientV2
    with httpx.Client() as connection:
        client = kind(api_key="any", base_url=address, httpx_client=connection)
        answer = client.rerank(model="judge", query="fox", documents=TEXTS, top_n=3)
    assert [result.index for result in answer.results] == ORDER[:3]
    for result in answer.results:
        assert result.relevance_score == pytest.approx(sigmoid(len(TEXTS[result.index]) / 10), abs=1e-6)
    assert answer.meta is not None
    assert not answer.meta.warnings


@pytest.mark.filterwarnings("ignore")
def test_the_cohere_client_raises_its_own_errors(address: str) -> None:
    import cohere

    with httpx.Client() as connection:
        client = cohere.ClientV2(api_key="any", base_url=address, httpx_client=connection)
        with pytest.raises(cohere.NotFoundError) as missing:
            client.rerank(model="nobody", query="fox", documents=TEXTS)
        with pytest.raises(cohere.BadRequestError):
            client.rerank(model="judge", query=" ", documents=TEXTS)
    assert "judge" in missing.value.body["message"]


def test_a_request_in_jinas_format_returns_documents(address: str) -> None:
    body = {
        "model": "judge",
        "query": {"text": "fox"},
        "documents": [{"text": "crow"}, {"image": uri(picture(1))}],
        "top_n": 2,
        "return_documents": True,
    }
    answer = httpx.post(f"{address}/v1/rerank", json=body).raise_for_status().json()
    assert {"model", "usage", "results"} <= answer.keys()
    assert [result["index"] for result in answer["results"]] == [1, 0]
    assert answer["results"][1]["document"] == {"text": "crow"}
    assert answer["score_kind"] == "probability"
    assert answer["degraded"] is False


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_images_in_vllms_format_are_read(address: str) -> None:
    image = {"type": "image_url", "image_url": {"url": uri(picture(1))}}
    body = {
        "query": {"content": [{"type": "text", "text": "fox"}]},
        "documents": [{"content": [image, {"type": "text", "text": "x"}]}, "crow"],
    }
    answer = httpx.post(f"{address}/v1/rerank", json=body).raise_for_status().json()
    assert [result["index"] for result in answer["results"]] == [0, 1]


def test_teis_format_is_a_bare_array_with_raw_or_activated_scores(address: str) -> None:
    plain = httpx.post(f"{address}/rerank", json={"query": "fox", "texts": TEXTS}).raise_for_status().json()
    assert [entry["index"] for entry in plain] == ORDER
    assert plain[0] == {"index": 3, "score": pytest.approx(sigmoid(2.3), abs=1e-6)}
    body = {"query": "fox", "texts": TEXTS, "raw_scores": True, "return_text": True, "truncate": True}
    bare = httpx.post(f"{address}/rerank", json=body).raise_for_status().json()
    assert bare[0] == {"index": 3, "text": TEXTS[3], "score": pytest.approx(2.3, abs=1e-6)}


@pytest.mark.parametrize(
    "body",
    [
        {"query": "fox"},
        {"query": "fox", "documents": []},
        {"query": "fox", "documents": ["a"], "typo": 1},
        {"query": "", "documents": ["a"]},
        {"query": "fox", "documents": [{}]},
        {"query": "fox", "documents": ["https://host/picture.png"]},
        {"query": "fox", "documents": [{"image": "http://169.254.169.254/latest/meta-data"}]},
        {"query": "fox", "documents": [{"image": "data:image/png;base64,%%"}]},
        {"query": "fox", "documents": [{"content": [{"type": "video_url", "text": "x"}]}]},
        {"query": "fox", "documents": [{"image": "data:image/png;base64,AA=="}], "model": "text"},
    ],
)
def test_an_invalid_body_is_reported_in_coheres_and_jinas_format(address: str, body: Any) -> None:
    answer = httpx.post(f"{address}/v1/rerank", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"] == answer.json()["detail"] != ""


def test_an_invalid_document_is_reported_with_its_pointer(address: str) -> None:
    answer = httpx.post(f"{address}/v1/rerank", json={"query": "fox", "documents": ["a", "http://host/b.png"]})
    assert answer.json()["message"].startswith("/documents/1:")


def test_errors_in_teis_format_have_its_statuses() -> None:
    async def test(client: Any) -> None:
        for body, status, kind in (
            ({"query": "fox"}, 422, "Validation"),
            ({"query": "fox", "texts": ["a"] * 4}, 413, "Validation"),
            ({"query": "fox", "texts": ["crash"]}, 424, "Backend"),
            ({"query": "fox", "texts": ["nan"]}, 424, "Backend"),
        ):
            answer = await client.post("/rerank", json=body)
            assert answer.status_code == status
            assert answer.json().keys() == {"error", "error_type"}
            assert answer.json()["error_type"] == kind
            assert "secret" not in answer.text

    with_service(test, max_documents=3)


def test_a_full_queue_is_429_with_retry_after_in_both_formats() -> None:
    async def test(client: Any) -> None:
        bodies = {"/v1/rerank": {"query": "fox", "documents": TEXTS}, "/rerank": {"query": "fox", "texts": TEXTS}}
        for path, body in bodies.items():
            answers = await asyncio.gather(*(client.post(path, json=body) for _ in range(8)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert refused
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert any(answer.status_code == 200 for answer in answers)

    slow = Judge()
    slow.before = lambda: time.sleep(0.05)
    with_service(test, {"judge": slow}, max_documents=5, batching=PairBatchingConfig(max_waiting=8, inline_ms=0.0))


def test_ten_megabytes_of_text_and_broken_images_fail_alone() -> None:
    async def test(client: Any) -> None:
        poison = [
            {"query": "fox", "documents": ["x" * 10_000_000]},
            {"query": "fox", "documents": [{"image": uri(b"broken")}, "crow"]},
            {"query": "fox", "documents": ["nan"]},
        ]
        good = [{"query": f"fox {i}", "documents": TEXTS} for i in range(5)]
        answers = await asyncio.gather(*(client.post("/v1/rerank", json=body) for body in [*poison, *good]))
        assert [answer.status_code for answer in answers] == [400, 400, 500, *[200] * 5]
        orders = [[result["index"] for result in answer.json()["results"]] for answer in answers[3:]]
        assert orders == [ORDER] * 5

    with_service(test)


def test_sixteen_requests_at_once_have_the_scores_of_one_after_another() -> None:
    async def test(client: Any) -> None:
        bodies = [{"query": "fox", "documents": [f"{'x' * (i * j % 37)} {i}" for j in range(50)]} for i in range(1, 17)]
        alone = [(await client.post("/v1/rerank", json=body)).json()["results"] for body in bodies]
        together = await asyncio.gather(*(client.post("/v1/rerank", json=body) for body in bodies))
        assert [answer.json()["results"] for answer in together] == alone

    with_service(test)


def test_a_deadline_returns_what_is_scored_and_says_so() -> None:
    judge = Judge()
    judge.before = lambda: time.sleep(0.12)

    async def test(client: Any) -> None:
        body = {"query": "fox", "documents": TEXTS * 4, "timeout_ms": 300}
        answer = (await client.post("/v1/rerank", json=body)).raise_for_status().json()
        indices = {result["index"] for result in answer["results"]}
        assert indices == set(range(len(indices)))  # the candidate with the best first-stage rank
        assert 0 < len(indices) < 20
        assert answer["degraded"] is True
        assert answer["meta"]["warnings"][0].startswith("degraded")
        late = await client.post("/v1/rerank", json={**body, "timeout_ms": 1})
        assert late.status_code == 504

    with_service(test, {"judge": judge}, batching=PairBatchingConfig(max_waiting=1000, max_batch=4, inline_ms=0.0))


def test_pairs_of_a_disconnected_client_are_not_scored() -> None:
    judge = Judge()
    judge.before = lambda: time.sleep(0.1)
    config = {"batching": PairBatchingConfig(max_waiting=1000, max_batch=4, inline_ms=0.0)}
    with running_server(rerank_app({"judge": judge}, **config)) as running:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running}/v1/rerank", json={"query": "fox", "documents": TEXTS * 20}, timeout=0.35)
        httpx.post(f"{running}/v1/rerank", json={"query": "fox", "documents": ["a"]}, timeout=10).raise_for_status()
    assert sum(judge.batches) < 40


def test_the_named_model_scores_and_listwise_rerankers_get_whole_lists() -> None:
    lists = LengthReranker()

    async def test(client: Any) -> None:
        answer = await client.post("/v2/rerank", json={"model": "list", "query": "fox", "documents": TEXTS})
        assert [result["index"] for result in answer.json()["results"]] == ORDER
        assert answer.json()["score_kind"] == "similarity"
        assert lists.calls[-1] == 5

    with_service(test, {"judge": Judge(), "list": lists})


def test_without_rerankers_the_endpoint_says_which_setting_loads_them() -> None:
    async def test(client: Any) -> None:
        answer = await client.post("/v1/rerank", json={"query": "fox", "documents": TEXTS})
        assert answer.status_code == 404
        assert "models.rerankers" in answer.json()["message"]

    with_service(test, {})


def test_rerankers_are_part_of_readiness_metrics_and_openapi() -> None:
    async def test(client: Any) -> None:
        await client.post("/v1/rerank", json={"query": "fox", "documents": TEXTS})
        assert (await client.get("/readyz")).json()["rerankers"] == [{"name": "judge", "ready": True}]
        metrics = (await client.get("/metrics")).text
        assert 'chamfer_reranked_pairs_total{outcome="ok",reranker="judge"} 5.0' in metrics
        described = (await client.get("/openapi.json")).json()
        assert {"/v1/rerank", "/v2/rerank", "/rerank"} <= described["paths"].keys()
        assert {"RerankBody", "TeiBody"} <= described["components"]["schemas"].keys()

    with_service(test)


def test_activation_and_its_inverse_agree_and_leave_other_kinds_alone() -> None:
    logits = np.array([-8.0, -1.0, 0.0, 3.0, 8.0], dtype=np.float32)
    probabilities = activated(logits, "logit")
    np.testing.assert_allclose(probabilities, [sigmoid(v) for v in logits], rtol=1e-5)
    np.testing.assert_allclose(raw(probabilities, "probability"), logits, atol=2e-3)
    for kind in ("similarity", "list"):
        assert activated(logits, kind) is raw(logits, kind) is logits  # type: ignore[arg-type]  # of the literals
    assert np.isfinite(raw(np.array([0.0, 1.0], dtype=np.float32), "probability")).all()


def test_ties_are_broken_by_index_and_unscored_documents_omitted() -> None:
    scores = np.array([1.0, np.nan, 2.0, 1.0], dtype=np.float32)
    assert ranked(scores) == [(2, 2.0), (0, 1.0), (3, 1.0)]


def test_a_request_that_could_never_be_queued_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidInput, match="max_waiting"):
        ServerConfig(reranking=RerankingConfig(max_documents=10_000))


def test_the_reranker_of_these_tests_scores_by_length() -> None:
    assert Judge().score(Query("q", "x"), [Document("d", "xx")]).tolist() == [np.float32(0.2)]
