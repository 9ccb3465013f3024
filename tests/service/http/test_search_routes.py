"""Searching over HTTP: single and batch answers as documented, plans, filters, and many callers at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from support_service import (
    SEARCH,
    LengthReranker,
    fables,
    pipeline,
    with_fables,
)

from chamfer.service.http.search_responses import BatchAnswer, SearchAnswer
from chamfer.service.search.pipeline import Pipeline

QUERY = "Why did the fox lose his tail?"


def judged(_: Path) -> Pipeline:
    return pipeline(rerankers={"length": LengthReranker()})


def test_a_search_answers_as_documented() -> None:
    async def check(client: Any) -> None:
        response = await client.post(SEARCH, json={"query": QUERY, "k": 3, "plan": "best", "explain": True})
        assert response.status_code == 200
        answer = SearchAnswer.model_validate_json(response.content)
        assert [hit.rank for hit in answer.hits] == [1, 2, 3]
        assert answer.collection == "fables"
        assert answer.snapshot == "snapshot-000001"
        assert answer.plan.name == "best"
        assert answer.request_id == response.headers["x-request-id"]
        assert {"queue", "encode", "retrieve:dense", "rescore:multivector", "rerank:length", "total"} <= set(
            answer.timings_ms
        )
        assert all(hit.explanation for hit in answer.hits)

    with_fables(check, load=judged)


def test_a_query_alone_is_enough() -> None:
    async def check(client: Any) -> None:
        answer = (await client.post(SEARCH, json={"query": QUERY})).json()
        assert answer["plan"]["name"] == "balanced"
        assert len(answer["hits"]) == 8
        assert "explanation" not in answer["hits"][0]
        assert answer["hits"][0]["metadata"]["number"] in range(8)

    with_fables(check)


def test_a_plan_may_be_spelled_out_and_is_echoed() -> None:
    async def check(client: Any) -> None:
        plan = {
            "channels": {"dense": {"depth": 5, "weight": 1.0}, "lexical": {"depth": 7, "weight": 0.5}},
            "fusion": {"method": "rrf", "k": 10.0},
            "feedback": None,
            "rescore": {"channel": "multivector", "depth": 4, "interpolate": 0.5},
            "cur": None,
            "rerank": None,
        }
        answer = (await client.post(SEARCH, json={"query": QUERY, "plan": plan})).json()
        assert answer["plan"] == {"name": "custom", **plan}

    with_fables(check)


def test_a_filter_is_applied() -> None:
    async def check(client: Any) -> None:
        body = {"query": QUERY, "filter": {"field": "number", "equals": 3}}
        answer = (await client.post(SEARCH, json=body)).json()
        assert [hit["doc_id"] for hit in answer["hits"]] == ["fable-3"]

    with_fables(check)


def test_a_batch_returns_a_result_or_an_error_for_each_search() -> None:
    async def check(client: Any) -> None:
        searches = [
            {"query": "fox", "k": 2},
            {"query": 5},
            {"query": "x", "plan": "fsat"},
            {"query": "crow", "k": 1},
            7,
        ]
        response = await client.post(f"{SEARCH}:batch", json={"searches": searches})
        answer = response.json()
        assert response.status_code == 200
        assert answer["failed"] == 3
        single = (await client.post(SEARCH, json={"query": "fox", "k": 2})).json()
        assert answer["results"][0]["hits"] == single["hits"]
        assert len(answer["results"][3]["hits"]) == 1
        assert answer["results"][1]["error"]["errors"][0]["pointer"] == "/searches/1/query"
        assert "did you mean 'fast'" in answer["results"][2]["error"]["detail"]
        assert answer["results"][4]["error"]["errors"][0]["pointer"] == "/searches/4"
        BatchAnswer.model_validate_json(response.content)

    with_fables(check)


def test_64_concurrent_callers_get_the_same_hits_as_one() -> None:
    async def check(client: Any) -> None:
        bodies = [
            {"query": f"{d.title} {n}", "k": 5, "plan": p} for n in range(3) for d in fables() for p in ("fast", "best")
        ]
        alone = [(await client.post(SEARCH, json=body)).json()["hits"] for body in bodies]
        together = await asyncio.gather(*(client.post(SEARCH, json=bodies[n % len(bodies)]) for n in range(64)))
        assert [response.json()["hits"] for response in together] == [alone[n % len(bodies)] for n in range(64)]

    with_fables(check, load=judged)


def test_an_invalid_filter_is_reported_with_its_pointer() -> None:
    async def check(client: Any) -> None:
        for condition, pointer in (
            ({"and": [{"field": "number", "equals": 1}, {"field": "number"}]}, "/filter/and/1"),
            ({"and": []}, "/filter/and"),
            ({"xor": []}, "/filter"),
        ):
            answer = (await client.post(SEARCH, json={"query": QUERY, "filter": condition})).json()
            [fault] = answer["errors"]
            assert fault["pointer"] == pointer
            assert "/filter" not in fault["detail"]

    with_fables(check)
