"""Remote rerankers against a local server that speaks each protocol: shapes, images, retries, budgets, faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support_judges import picture
from support_rerank_server import RerankServer, expected, rerank_server, sigmoid

from chamfer.core.errors import ChamferError, DeadlineExceeded, Internal, InvalidInput, Overloaded, Unavailable
from chamfer.core.types import Document, Query
from chamfer.models.rerankers.remote import RemoteConfig, RemoteReranker, retry_after
from chamfer.models.rerankers.remote_protocols import PROTOCOLS, data_uri

QUERY = Query("q", "fox and tail")
DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(["the crow", "fox tail and", "a fox", "", "tail and"])]


@pytest.fixture
def server() -> Iterator[RerankServer]:
    with rerank_server() as served:
        yield served


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def reranker(
    server: RerankServer, protocol: Any = "cohere", time: Time | None = None, **options: Any
) -> RemoteReranker:
    clock = time or Time()
    config = RemoteConfig(url=server.url, protocol=protocol, model="m", **options)
    return RemoteReranker("far", config, clock=lambda: clock.now, sleep=clock.sleep)


@pytest.mark.parametrize("protocol", sorted(set(PROTOCOLS) - {"openai-true-false"}))
def test_each_protocol_gives_the_servers_scores_in_the_order_of_the_documents(
    server: RerankServer, protocol: str
) -> None:
    remote = reranker(server, protocol, api_key="secret", max_documents=2)
    scores = remote.score(QUERY, DOCUMENTS)
    logits = [expected(QUERY, document) for document in DOCUMENTS]
    wanted = logits if remote.score_kind == "logit" else [sigmoid(value) for value in logits]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert {path for path, _ in server.bodies} == {PROTOCOLS[protocol].path}
    assert len(server.bodies) == (5 if PROTOCOLS[protocol].single else 3)
    assert all(headers["authorization"] == "Bearer secret" for headers in server.headers)
    remote.close()


@pytest.mark.parametrize("protocol", [name for name, p in PROTOCOLS.items() if p.images and "false" not in name])
def test_images_arrive_as_they_were_sent(server: RerankServer, protocol: str) -> None:
    documents = [Document("a", "", image=picture(1)), Document("b", "", image=picture(2)), Document("c", "fox")]
    remote = reranker(server, protocol)
    logits = [expected(QUERY, document) for document in documents]
    wanted = logits if remote.score_kind == "logit" else [sigmoid(value) for value in logits]
    np.testing.assert_allclose(remote.score(QUERY, documents), wanted, atol=1e-5)
    remote.close()


@pytest.mark.parametrize("protocol", [name for name, p in PROTOCOLS.items() if not p.images])
def test_a_protocol_without_images_refuses_them_without_a_request(server: RerankServer, protocol: str) -> None:
    remote = reranker(server, protocol)
    with pytest.raises(InvalidInput, match="reads text only"):
        remote.score(QUERY, [Document("a", "", image=picture(1))])
    assert not server.bodies
    remote.close()


def test_pairs_of_several_queries_are_grouped_by_query(server: RerankServer) -> None:
    other = Query("p", "crow")
    remote = reranker(server)
    pairs = [(QUERY, DOCUMENTS[0]), (other, DOCUMENTS[0]), (QUERY, DOCUMENTS[1]), (other, DOCUMENTS[1])]
    np.testing.assert_allclose(remote.score_pairs(pairs), [sigmoid(expected(q, d)) for q, d in pairs], atol=1e-6)
    assert len(server.bodies) == 2
    remote.close()


def test_an_overloaded_server_is_retried_after_its_retry_after(server: RerankServer) -> None:
    time = Time()
    server.faults = [(429, {"Retry-After": "7"}), (503, {})]
    remote = reranker(server, time=time, backoff_seconds=0.5)
    remote.score(QUERY, DOCUMENTS[:1])
    assert time.slept[0] == 7.0
    assert 0 <= time.slept[1] <= 1.0
    assert len(server.bodies) == 3
    remote.close()


def test_a_wait_beyond_the_budget_fails_at_once(server: RerankServer) -> None:
    time = Time()
    server.faults = [(429, {"Retry-After": "60"})]
    remote = reranker(server, time=time, budget_seconds=30.0)
    with pytest.raises(Overloaded) as failure:
        remote.score(QUERY, DOCUMENTS[:1])
    assert failure.value.retry_after_seconds == 60
    assert time.slept == []
    remote.close()


def test_attempts_are_limited_by_retries(server: RerankServer) -> None:
    server.faults = [(500, {})] * 9
    remote = reranker(server, retries=2)
    with pytest.raises(Unavailable, match="status 500"):
        remote.score(QUERY, DOCUMENTS[:1])
    assert len(server.bodies) == 3
    remote.close()


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidInput), (422, InvalidInput), (401, Unavailable)])
def test_permanent_failures_are_not_retried(server: RerankServer, status: int, kind: type[ChamferError]) -> None:
    server.faults = [(status, {})]
    remote = reranker(server)
    with pytest.raises(kind, match=f"status {status}"):
        remote.score(QUERY, DOCUMENTS[:1])
    assert len(server.bodies) == 1
    remote.close()


def test_a_redirect_is_not_followed(server: RerankServer) -> None:
    server.faults = [(307, {"Location": f"{server.url}/elsewhere"})]
    remote = reranker(server)
    with pytest.raises(InvalidInput, match="status 307"):
        remote.score(QUERY, DOCUMENTS[:1])
    assert [path for path, _ in server.bodies] == ["/v2/rerank"]
    remote.close()


def test_requests_per_minute_limits_attempts_and_resets_after_a_minute(server: RerankServer) -> None:
    time = Time()
    remote = reranker(server, time=time, requests_per_minute=2)
    remote.score(QUERY, DOCUMENTS[:1])
    remote.score(QUERY, DOCUMENTS[:1])
    with pytest.raises(Overloaded, match="requests_per_minute") as failure:
        remote.score(QUERY, DOCUMENTS[:1])
    assert failure.value.retry_after_seconds == pytest.approx(60)
    time.now += 61
    remote.score(QUERY, DOCUMENTS[:1])
    assert len(server.bodies) == 3
    remote.close()


def test_an_exhausted_budget_sends_no_request(server: RerankServer) -> None:
    ticks = iter([0.0] + [100.0] * 20)
    config = RemoteConfig(url=server.url, protocol="tei", budget_seconds=30.0)
    remote = RemoteReranker("far", config, clock=lambda: next(ticks))
    with pytest.raises(DeadlineExceeded, match=r"30\.0 s"):
        remote.score(QUERY, DOCUMENTS[:1])
    assert not server.bodies
    remote.close()


@pytest.mark.parametrize(
    "answer",
    [
        {"results": [{"index": 0, "relevance_score": 1.0}]},
        {"results": [{"index": 0, "relevance_score": 1.0}, {"index": 0, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.5}]},
        {"scores": [1.0, 0.5]},
        {"results": [{"index": 0, "relevance_score": "high"}, {"index": 1, "relevance_score": 0.5}]},
    ],
)
def test_a_response_that_does_not_score_each_document_once_is_refused(server: RerankServer, answer: Any) -> None:
    server.answer = answer
    remote = reranker(server, retries=0)
    with pytest.raises(Unavailable):
        remote.score(QUERY, DOCUMENTS[:2])
    remote.close()


def test_a_chat_answer_that_lists_neither_word_gives_nan(server: RerankServer) -> None:
    listed = [{"token": "perhaps", "logprob": -0.1}]
    server.answer = {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}
    remote = reranker(server, "openai")
    assert np.isnan(remote.score_pairs([(QUERY, DOCUMENTS[0])])).all()
    with pytest.raises(Internal, match="d0"):
        remote.score(QUERY, DOCUMENTS[:1])
    remote.close()


def test_a_chat_answer_that_is_not_listed_counts_as_the_least_listed(server: RerankServer) -> None:
    listed = [{"token": "Yes", "logprob": -0.5}, {"token": "hm", "logprob": -9.0}]
    server.answer = {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}
    remote = reranker(server, "openai")
    np.testing.assert_allclose(remote.score(QUERY, DOCUMENTS[:1]), [8.5], atol=1e-6)
    remote.close()


def test_an_unreachable_server_is_unavailable_after_the_retries() -> None:
    time = Time()
    config = RemoteConfig(url="http://127.0.0.1:1", protocol="jina", retries=2)
    remote = RemoteReranker("far", config, clock=lambda: time.now, sleep=time.sleep)
    with pytest.raises(Unavailable, match="cannot be reached"):
        remote.score(QUERY, DOCUMENTS[:1])
    assert len(time.slept) == 2
    remote.close()


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert retry_after("120", 0.0) == 120.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412470.0) == 10.0
    assert retry_after("soon", 0.0) is None
    assert retry_after("", 0.0) is None


def test_the_api_key_is_not_shown_and_an_invalid_configuration_is_refused() -> None:
    assert "secret" not in repr(RemoteConfig(url="http://a", protocol="tei", api_key="secret"))
    for options in ({"url": "ftp://a"}, {"protocol": "morse"}, {"concurrency": 0}):
        with pytest.raises(InvalidInput):
            RemoteConfig(**{"url": "http://a", "protocol": "tei", **options})  # type: ignore[arg-type]  # on purpose


def test_the_type_of_a_data_uri_is_that_of_its_bytes() -> None:
    assert data_uri(picture(0)).startswith("data:image/png;base64,")
    assert data_uri(b"\xff\xd8\xff rest").startswith("data:image/jpeg;base64,")
