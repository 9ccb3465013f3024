"""The application: errors, request ids, readiness, overload, clients that disconnect, metrics, documentation."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError
from support_service import (
    SEARCH,
    LengthReranker,
    RecordingEncoder,
    client_of,
    collection,
    fables_app,
    pipeline,
    with_fables,
)

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document
from chamfer.service.http.app import create_app
from chamfer.service.http.client_disconnect import WATCH_AFTER_SECONDS
from chamfer.service.http.config import ServerConfig
from chamfer.service.http.search_requests import BatchBody, SearchBody
from chamfer.service.http.search_responses import Problem, SearchAnswer
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.search.pipeline import Pipeline

QUERY = "Why did the fox lose his tail?"


def judged(_: Path) -> Pipeline:
    return pipeline(rerankers={"length": LengthReranker()})


def test_errors_are_problem_documents_with_pointers() -> None:
    async def check(client: Any) -> None:
        body = {
            "query": QUERY,
            "k": 0,
            "colour": 1,
            "plan": {"channels": {"a/b~c": {"depth": 0}}, "fusion": {"method": "rrf", "k": -1}},
        }
        response = await client.post(SEARCH, json=body)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(response.content)
        assert problem.code == "invalid_input"
        assert problem.status == 400
        assert problem.instance == SEARCH
        assert problem.request_id == response.headers["x-request-id"]
        assert {fault["pointer"] for fault in problem.errors or []} == {
            "/k",
            "/colour",
            "/plan/channels/a~1b~0c/depth",
            "/plan/fusion/k",
        }

    with_fables(check)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/collections/none", 404, "not_found"),
        ("POST", "/v1/collections/none/search", 404, "not_found"),
        ("GET", SEARCH, 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("GET", "/console/../app.py", 404, "not_found"),
        ("GET", "/v1/collections/", 404, "not_found"),
    ],
)
def test_an_unknown_path_or_method_is_a_problem_document(method: str, path: str, status: int, code: str) -> None:
    async def check(client: Any) -> None:
        response = await client.request(method, path, json={"query": "x"} if method == "POST" else None)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == code
        assert status != 405 or response.headers["allow"]

    with_fables(check)


def test_a_valid_request_id_is_echoed() -> None:
    async def check(client: Any) -> None:
        response = await client.post(SEARCH, json={"query": QUERY}, headers={"X-Request-ID": "trace-1:a.b_c"})
        assert response.headers["x-request-id"] == "trace-1:a.b_c"
        assert response.json()["request_id"] == "trace-1:a.b_c"
        assert (await client.get("/nothing")).headers["x-request-id"]

    with_fables(check)


def test_a_failing_encoder_is_a_logged_500_without_internals() -> None:
    encoder = RecordingEncoder()
    encoder.fail_on = "poison"
    captured = structlog.testing.CapturingLogger()
    log = structlog.wrap_logger(captured, processors=[structlog.processors.format_exc_info])
    app = create_app({"fables": Path()}, ServerConfig(), lambda _: pipeline(encoder=encoder), log=log)

    async def body() -> None:
        async with client_of(app) as client:
            response = await client.post(SEARCH, json={"query": "poison"}, headers={"X-Request-ID": "r-1"})
            assert response.status_code == 500
            assert response.json()["code"] == "internal"
            assert "secret" not in response.text
            assert "encode" not in response.text

    asyncio.run(body())
    [call] = [call for call in captured.calls if call.method_name == "error"]
    assert call.kwargs["request_id"] == "r-1"
    assert "secret detail of the encoder" in call.kwargs["exception"]


def test_an_unhandled_error_is_a_logged_500_without_internals() -> None:
    stored = collection()
    stored.bytes_by_part = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    captured = structlog.testing.CapturingLogger()
    app = create_app(
        {"fables": Path()},
        ServerConfig(),
        lambda _: pipeline(collection=stored),
        log=structlog.wrap_logger(captured, processors=[]),
    )

    async def body() -> None:
        async with client_of(app) as client:
            response = await client.get("/v1/collections/fables")
            assert response.status_code == 500
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["x-request-id"] == response.json()["request_id"]
            assert "ZeroDivision" not in response.text

    asyncio.run(body())
    assert [call.kwargs["path"] for call in captured.calls if call.method_name == "error"] == ["/v1/collections/fables"]


def test_the_service_is_ready_only_after_the_warm_up() -> None:
    gate = threading.Event()

    def slow(_: Path) -> Pipeline:
        gate.wait(30)
        return pipeline()

    async def body() -> None:
        async with client_of(fables_app(load=slow), ready=False) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            response = await client.post(SEARCH, json={"query": QUERY})
            assert response.status_code == 503
            assert response.json()["code"] == "unavailable"
            assert response.headers["retry-after"] == "1"
            assert (await client.get("/v1/collections")).json()["collections"][0]["ready"] is False
            gate.set()
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
            assert (await client.post(SEARCH, json={"query": QUERY})).status_code == 200

    asyncio.run(body())


def test_collection_detail_describes_channels_encoder_and_plans() -> None:
    async def check(client: Any) -> None:
        detail = (await client.get("/v1/collections/fables")).json()
        assert detail["documents"] == 8
        assert detail["snapshot"] == "snapshot-000001"
        assert set(detail["channels"]) == {"dense", "lexical", "multivector"}
        assert detail["channels"]["multivector"]["kind"] == "tokens"
        assert set(detail["plans"]) == {"fast", "balanced", "best"}
        assert detail["bytes"] == {"dense": 512, "documents": 472}
        assert detail["encoder"]["name"] == "hash"
        assert detail["examples"] == ["a question"]

    with_fables(check, examples={"fables": ["a question"]})


def test_a_full_queue_is_429_with_retry_after() -> None:
    gate, entered = threading.Event(), threading.Event()

    async def body() -> None:
        stored = collection()
        app = fables_app(load=lambda _: pipeline(collection=stored), batching=BatchingConfig(max_waiting=128))
        async with client_of(app) as client:
            stored.channels["dense"].retriever.before = lambda: (entered.set(), gate.wait(30))
            first = asyncio.create_task(client.post(SEARCH, json={"query": QUERY}))
            while not entered.is_set():
                await asyncio.sleep(0.002)
            full = {"searches": [{"query": QUERY}] * 128}
            waiting = asyncio.create_task(client.post(f"{SEARCH}:batch", json=full))
            await asyncio.sleep(0.05)
            refused = await client.post(SEARCH, json={"query": QUERY})
            assert refused.status_code == 429
            assert refused.json()["code"] == "overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            gate.set()
            assert (await first).status_code == 200
            assert (await waiting).json()["failed"] == 0
            metrics = (await client.get("/metrics")).text
            assert 'chamfer_searches_total{collection="fables",outcome="overloaded"} 1.0' in metrics

    asyncio.run(body())


def test_a_search_of_a_disconnected_client_is_not_run() -> None:
    gate, entered = threading.Event(), threading.Event()

    async def body() -> None:
        stored = collection()
        app = fables_app(load=lambda _: pipeline(collection=stored))
        async with client_of(app) as client:
            retriever = stored.channels["dense"].retriever
            retriever.before = lambda: (entered.set(), gate.wait(30))
            first = asyncio.create_task(client.post(SEARCH, json={"query": "first"}))
            while not entered.is_set():
                await asyncio.sleep(0.002)
            calls = len(retriever.calls)
            left = asyncio.create_task(leave_after(app, 3 * WATCH_AFTER_SECONDS))
            await left
            gate.set()
            assert (await first).status_code == 200
            assert len(retriever.calls) == calls + 1
            metrics = (await client.get("/metrics")).text
            assert 'chamfer_searches_total{collection="fables",outcome="client_left"} 1.0' in metrics

    asyncio.run(body())


async def leave_after(app: Any, seconds: float) -> None:
    """A raw ASGI client that sends a search and disconnects."""
    messages = [{"type": "http.request", "body": b'{"query": "left"}', "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 499) == 499

    scope = {
        "type": "http",
        "method": "POST",
        "path": SEARCH,
        "raw_path": SEARCH.encode(),
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    await app(scope, receive, send)


def test_an_exceeded_deadline_is_504() -> None:
    async def check(client: Any) -> None:
        response = await client.post(SEARCH, json={"query": QUERY, "timeout_ms": 1e-6})
        assert response.status_code == 504
        assert response.json()["code"] == "deadline_exceeded"

    with_fables(check)


def test_reload_opens_a_newer_snapshot(tmp_path: Path) -> None:
    def load(path: Path) -> Pipeline:
        return pipeline(collection=collection(snapshot=(path / "CURRENT").read_text()))

    (tmp_path / "CURRENT").write_text("snapshot-000001")

    async def check(client: Any) -> None:
        assert (await client.post("/v1/collections/fables/reload")).json()["changed"] is False
        (tmp_path / "CURRENT").write_text("snapshot-000002")
        response = await client.post("/v1/collections/fables/reload")
        assert response.json() == {"snapshot": "snapshot-000002", "changed": True}
        assert (await client.post(SEARCH, json={"query": QUERY})).json()["snapshot"] == "snapshot-000002"

    with_fables(check, load=load, path=tmp_path, reload_seconds=600.0)


def test_metrics_count_requests_by_route_and_not_by_path() -> None:
    async def check(client: Any) -> None:
        await client.post(SEARCH, json={"query": QUERY})
        await client.get("/made/up/1")
        await client.get("/made/up/2")
        text = (await client.get("/metrics")).text
        assert (
            'chamfer_http_requests_total{method="POST",route="/v1/collections/{name}/search",status="200"} 1.0' in text
        )
        assert 'chamfer_http_requests_total{method="GET",route="unmatched",status="404"} 2.0' in text
        assert "made" not in text
        assert 'chamfer_stage_seconds_bucket{collection="fables",le="0.0005",stage="encode"}' in text

    with_fables(check)


def test_openapi_describes_bodies_with_examples_that_are_valid() -> None:
    async def check(client: Any) -> None:
        document = (await client.get("/openapi.json")).json()
        search = document["paths"]["/v1/collections/{name}/search"]["post"]
        reference = search["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        for example in schema["examples"]:
            SearchBody.model_validate(example)
        for example in document["components"]["schemas"]["BatchBody"]["examples"]:
            BatchBody.model_validate(example)
        assert "422" not in search["responses"]
        assert references(document) <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    with_fables(check)


def references(value: Any) -> set[str]:
    """Every $ref below a value."""
    if isinstance(value, dict):
        named = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return named.union(*(references(item) for item in value.values()))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


def test_documents_with_values_that_json_lacks_are_still_returned() -> None:
    odd = [
        Document(
            "odd", "text \ud800 here", "title", {"number": float("nan"), "when": Path("x"), 5: "five", "large": 2**80}
        )
    ]

    async def check(client: Any) -> None:
        response = await client.post(SEARCH, json={"query": "text"})
        assert response.status_code == 200
        [hit] = response.json()["hits"]
        assert hit["text"] == "text ? here"
        assert hit["metadata"] == {"number": None, "when": "x", "5": "five", "large": str(2**80)}

    with_fables(check, load=lambda _: pipeline(collection=collection(odd)))


def test_the_console_is_served_with_a_strict_policy_and_no_external_resources() -> None:
    async def check(client: Any) -> None:
        for path in ("/", "/console.css", "/console.js", "/favicon.svg"):
            response = await client.get(path)
            assert response.status_code == 200
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert "unsafe" not in response.headers["content-security-policy"]
            assert "https://" not in response.text
            assert "innerHTML" not in response.text
        assert (await client.head("/")).status_code == 200

    with_fables(check)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidInput, match="max_batch_searches"):
        ServerConfig(batching=BatchingConfig(max_waiting=10))
    with pytest.raises(InvalidInput, match="reload_seconds"):
        ServerConfig(reload_seconds=0)


def test_the_documented_response_schema_rejects_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        SearchAnswer.model_validate({"hits": [], "surprise": 1})
