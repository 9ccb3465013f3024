"""Malicious and malformed requests: each gets a 4xx problem document without internals, and the service continues."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_service import SEARCH, client_of, fables_app, with_fables

from chamfer.service.http.config import Limits

BATCH = f"{SEARCH}:batch"


def nested(depth: int, opening: str, closing: str, inner: str) -> str:
    return opening * depth + inner + closing * depth


DEEP_FILTER = nested(60, '{"not": ', "}", '{"field": "a", "equals": 1}').encode()
DEEP_LIST = nested(100_000, "[", "]", "").encode()

REFUSED = {
    "no body": b"",
    "not JSON": b"query=fox",
    "not UTF-8": b'{"query": "\xff\xfe"}',
    "cut off": b'{"query": "fox"',
    "two values": b'{"query": "fox"} {"query": "fox"}',
    "an array": b"[]",
    "null": b"null",
    "a lone surrogate in the query": b'{"query": "fox \\ud800 tail"}',
    "a lone surrogate in a plan's name": b'{"query": "fox", "plan": "\\udfff"}',
    "no query": b'{"k": 3}',
    "an empty query": b'{"query": ""}',
    "white space for a query": b'{"query": " \\n\\t "}',
    "a number for a query": b'{"query": 5}',
    "a list for a query": b'{"query": ["fox"]}',
    "k of zero": b'{"query": "fox", "k": 0}',
    "negative k": b'{"query": "fox", "k": -1}',
    "k above the limit": b'{"query": "fox", "k": 1001}',
    "k beyond 64 bits": b'{"query": "fox", "k": 1' + b"0" * 400 + b"}",
    "k as text": b'{"query": "fox", "k": "10"}',
    "k as a fraction": b'{"query": "fox", "k": 1.5}',
    "k as NaN": b'{"query": "fox", "k": NaN}',
    "k as true": b'{"query": "fox", "k": true}',
    "a negative timeout": b'{"query": "fox", "timeout_ms": -5}',
    "a timeout of zero": b'{"query": "fox", "timeout_ms": 0}',
    "a timeout of NaN": b'{"query": "fox", "timeout_ms": NaN}',
    "an infinite timeout": b'{"query": "fox", "timeout_ms": Infinity}',
    "a timeout above the limit": b'{"query": "fox", "timeout_ms": 1e300}',
    "an unknown field": b'{"query": "fox", "qurey": "x"}',
    "explain as text": b'{"query": "fox", "explain": "yes"}',
    "an unknown plan": b'{"query": "fox", "plan": "none such"}',
    "a huge plan name": orjson.dumps({"query": "fox", "plan": "x" * 10_000}),
    "a plan as a number": b'{"query": "fox", "plan": 7}',
    "a weight of NaN": b'{"query": "fox", "plan": {"channels": {"dense": {"weight": NaN}}}}',
    "a plan of a thousand channels": orjson.dumps(
        {"query": "fox", "plan": {"channels": {str(n): {} for n in range(1000)}}}
    ),
    "a depth of a billion": b'{"query": "fox", "plan": {"channels": {"dense": {"depth": 1000000000}}}}',
    "a filter that is a list": b'{"query": "fox", "filter": [1]}',
    "a filter with an unknown operator": b'{"query": "fox", "filter": {"xor": []}}',
    "a filter with NaN": b'{"query": "fox", "filter": {"field": "number", "equals": NaN}}',
    "a deep filter": b'{"query": "fox", "filter": ' + DEEP_FILTER + b"}",
    "a wide filter": orjson.dumps({"query": "fox", "filter": {"field": "a", "in": list(range(5000))}}),
    "a query beyond the limit": orjson.dumps({"query": "fox " * 5000}),
    "JSON a hundred thousand deep": DEEP_LIST,
    "JSON a hundred thousand deep in a field": b'{"query": "fox", "filter": {"and": ' + DEEP_LIST + b"}}",
    "a hundred thousand unknown fields": orjson.dumps({"query": "fox"} | {f"f{n}": n for n in range(20_000)}),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """The responses to all refused bodies from one service, which must answer a plain search in the end."""
    responses: dict[str, Any] = {}

    async def body() -> None:
        async with client_of(fables_app()) as client:
            for name, content in REFUSED.items():
                responses[name] = await client.post(SEARCH, content=content)
            assert (await client.post(SEARCH, json={"query": "fox"})).status_code == 200

    asyncio.run(body())
    return responses


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused_with_a_small_problem_document(answers: dict[str, Any], name: str) -> None:
    response = answers[name]
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "invalid_input"
    assert len(response.content) < 6000
    assert "Traceback" not in response.text
    assert "/service/" not in response.text.replace("/v1/", "")


@pytest.mark.parametrize("name", ["k above the limit", "a query beyond the limit", "a wide filter", "a deep filter"])
def test_a_refusal_by_a_limit_names_its_setting(answers: dict[str, Any], name: str) -> None:
    assert "limits.max_" in answers[name].json()["detail"]


def test_a_body_beyond_the_limit_is_413_before_it_is_read() -> None:
    async def check(client: Any) -> None:
        sent = 0

        async def chunks() -> Any:
            nonlocal sent
            for _ in range(1000):
                sent += 10_000
                yield b" " * 10_000

        announced = await client.post(SEARCH, content=b" " * 200_000)
        streamed = await client.post(SEARCH, content=chunks())
        for response in (announced, streamed):
            assert response.status_code == 413
            assert response.json()["code"] == "too_large"
            assert "limits.max_body_bytes" in response.json()["detail"]
        assert sent < 1_000_000

    with_fables(check, limits=Limits(max_body_bytes=100_000))


@pytest.mark.parametrize("length", ["-1", "abc", "1" * 5000, ""])
def test_an_invalid_content_length_does_not_fail_the_service(length: str) -> None:
    async def check(client: Any) -> None:
        response = await client.post(SEARCH, content=b'{"query": "fox"}', headers={"Content-Length": length})
        assert response.status_code in (200, 413)

    with_fables(check)


@pytest.mark.parametrize(
    "given",
    ["a b", "x" * 129, "a\tb", "é", "<script>", '{"json": 1}', "a;b", "%0d%0aX-Evil: 1", "a\x0bX-Evil: 1"],
)
def test_a_request_id_that_is_not_harmless_is_replaced(given: str) -> None:
    async def check(client: Any) -> None:
        response = await client.get("/healthz", headers=[(b"X-Request-ID", given.encode("latin-1"))])
        assert response.headers["x-request-id"] != given
        assert response.headers["x-request-id"].isalnum()
        assert "x-evil" not in response.headers

    with_fables(check)


def test_null_bytes_and_control_characters_in_a_query_are_text() -> None:
    async def check(client: Any) -> None:
        response = await client.post(SEARCH, json={"query": "fox\x00tail\x1b[31m\u202e"})
        assert response.status_code == 200

    with_fables(check)


def test_a_batch_beyond_the_limit_is_refused_whole() -> None:
    async def check(client: Any) -> None:
        response = await client.post(BATCH, json={"searches": [{"query": "fox"}] * 129})
        assert response.status_code == 400
        assert "limits.max_batch_searches" in response.json()["detail"]
        assert (await client.post(BATCH, json={"searches": []})).status_code == 400
        assert (await client.post(BATCH, json={"searches": {"query": "fox"}})).status_code == 400

    with_fables(check)


def test_hostile_searches_of_a_batch_fail_alone() -> None:
    async def check(client: Any) -> None:
        deep: Any = {"field": "a", "equals": 1}
        for _ in range(60):
            deep = {"not": deep}
        hostile = [None, [], "fox", {"query": "fox", "k": 0}, {"query": "fox", "filter": deep}, {"query": " "}]
        answer = (await client.post(BATCH, json={"searches": [*hostile, {"query": "fox"}]})).json()
        assert answer["failed"] == len(hostile)
        assert answer["results"][-1]["hits"]

    with_fables(check)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("query", "k", "plan", "filter", "explain", "timeout_ms", "image")


@settings(deadline=None, max_examples=10)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values), min_size=10, max_size=10))
def test_no_generated_body_makes_the_service_fail(bodies: list[dict[str, Any]]) -> None:
    async def check(client: Any) -> None:
        for body in bodies:
            for content in (body, {"query": "fox", **body}):
                response = await client.post(SEARCH, content=json.dumps(content))
                assert response.status_code in (200, 400, 504), response.text
        assert (await client.get("/healthz")).status_code == 200

    with_fables(check)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/collections/%00/search",
        "/v1/collections/..%2f..%2fetc/search",
        "/v1/collections/%ff/search",
        "/%2e%2e/console.js",
    ],
)
def test_malformed_paths_are_refused(path: str) -> None:
    async def check(client: Any) -> None:
        response = await client.post(path, json={"query": "fox"})
        assert response.status_code in (404, 405)
        assert response.headers["content-type"] == "application/problem+json"

    with_fables(check)
