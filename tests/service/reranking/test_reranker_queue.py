"""Pairs of many callers: who shares a batch, whose fault is whose, what a deadline cuts, what a departure spares."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_service import LengthReranker, ManualClock, PairReranker, pipeline

from chamfer.core.errors import ChamferError, Internal, InvalidInput, Overloaded, Unavailable
from chamfer.core.types import Document, Query
from chamfer.service.reranking.reranker_queue import ROUND_PAIRS, Ask, Pace, ServedReranker, judge, rank_in_time
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.runtime.telemetry import RerankerTelemetry, Telemetry
from chamfer.service.search.request import SearchRequest, SearchResult

QUERY = Query("q", "which fox?")


def documents(n: int, text: str = "fox") -> list[Document]:
    return [Document(str(i), text + " x" * i) for i in range(n)]


def lengths(found: Sequence[Document]) -> list[float]:
    return [float(len(document.text)) for document in found]


@given(st.lists(st.sampled_from(["fine", "crash", "image", "nan"]), min_size=1, max_size=24))
@settings(max_examples=60, deadline=None)
def test_one_faulty_pair_fails_alone(texts: list[str]) -> None:
    outcomes = judge(PairReranker(), [(QUERY, Document(str(i), text)) for i, text in enumerate(texts)])
    kinds = {"crash": Internal, "image": InvalidInput, "nan": Internal}
    for text, outcome in zip(texts, outcomes, strict=True):
        if text == "fine":
            assert outcome == len(text)
        else:
            assert isinstance(outcome, kinds[text])


def test_a_server_in_trouble_is_not_asked_again_in_halves() -> None:
    reranker = PairReranker()
    outcomes = judge(reranker, [(QUERY, Document(str(i), "down")) for i in range(8)])
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert reranker.batches == [8]


def test_without_deadlines_all_pairs_go_at_once() -> None:
    reranker, asks = PairReranker(), [Ask(QUERY, documents(n)) for n in (50, 3, 0)]
    rank_in_time(reranker, asks, Pace(), ManualClock())
    assert reranker.batches == [53]
    assert [ask.scores for ask in asks] == [lengths(ask.documents) for ask in asks]


def test_a_deadline_cuts_the_tail_and_not_that_of_others() -> None:
    clock, reranker = ManualClock(), PairReranker()
    reranker.before = lambda: clock.wait(1.0)
    hurried, patient = Ask(QUERY, documents(60), deadline=clock.now + 3.5), Ask(QUERY, documents(60))
    rank_in_time(reranker, [hurried, patient], Pace(), clock)
    assert 0 < len(hurried.scores) < 60
    assert hurried.scores == lengths(hurried.documents)[: len(hurried.scores)]
    assert hurried.open
    assert patient.scores == lengths(patient.documents)
    assert all(size <= ROUND_PAIRS for size in reranker.batches[: len(hurried.scores) // 8])


def test_a_search_keeps_what_was_judged_in_time_and_says_that_it_is_degraded() -> None:
    clock, reranker = ManualClock(), PairReranker()
    reranker.before = lambda: clock.wait(1.0)
    from support_service import collection

    searching = pipeline(
        collection=collection([Document(f"d{i}", "fox " + "x" * i) for i in range(100)]),
        rerankers={"pairs": reranker},
        clock=clock,
    )
    plan = {"channels": {"dense": {"depth": 100}}, "rerank": {"model": "pairs", "depth": 100}}
    [result] = searching.run([_request(plan, deadline=clock.now + 3.5)])
    assert isinstance(result, SearchResult)
    assert result.degraded == ("rerank:pairs",)
    assert sum(reranker.batches) in range(1, 100)
    scored = [hit.explanation["stages"][-1]["score"] for hit in result.hits if hit.explanation]  # type: ignore[index]  # our own shape
    assert sum(score is not None for score in scored) == sum(reranker.batches)
    assert all(score is not None for score in scored[: sum(reranker.batches)])


def test_the_searches_of_a_batch_share_the_rerankers_batch() -> None:
    reranker = PairReranker()
    searching = pipeline(rerankers={"pairs": reranker})
    plan = {"channels": {"dense": {}}, "rerank": {"model": "pairs", "depth": 5}}
    alone = [searching.run([_request(plan, query=q)])[0] for q in ("fox", "crow")]
    reranker.batches.clear()
    together = searching.run([_request(plan, query=q) for q in ("fox", "crow")])
    assert reranker.batches == [10]
    for a, b in zip(alone, together, strict=True):
        assert isinstance(a, SearchResult)
        assert isinstance(b, SearchResult)
        assert [(h.doc_id, h.score) for h in a.hits] == [(h.doc_id, h.score) for h in b.hits]


def test_a_search_with_a_faulty_pair_fails_alone() -> None:
    from support_service import collection

    searching = pipeline(
        collection=collection([Document("a", "fox"), Document("b", "crash crow")]), rerankers={"pairs": PairReranker()}
    )
    plan = {"channels": {"dense": {"depth": 1}}, "rerank": {"model": "pairs", "depth": 1}}
    good, bad = searching.run([_request(plan, query=q, k=1) for q in ("fox", "crash crow")])
    assert isinstance(good, SearchResult)
    assert isinstance(bad, Internal)


def _request(plan: dict[str, Any], query: str = "fox", k: int = 100, deadline: float | None = None) -> SearchRequest:
    from chamfer.service.search.plans import Plan

    return SearchRequest(query=query, k=k, plan=Plan.model_validate(plan), explain=True, deadline=deadline)


def served(test: Callable[[ServedReranker], Awaitable[None]], reranker: Any, **config: Any) -> None:
    async def body() -> None:
        import structlog

        log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
        options = {"max_waiting": 1000, "max_batch": 8, "inline_ms": 0.0, **config}
        queue = ServedReranker(
            "r", lambda: reranker, BatchingConfig(**options), RerankerTelemetry(Telemetry(log), "r"), warm=False
        )
        await queue.start()
        try:
            while True:
                try:
                    _ = queue.reranker
                    break
                except Unavailable:
                    await asyncio.sleep(0.005)
            await test(queue)
        finally:
            await queue.close()

    asyncio.run(body())


def test_requests_share_batches_and_each_gets_its_own_scores() -> None:
    reranker = PairReranker()

    async def test(queue: ServedReranker) -> None:
        asked = [documents(n, f"fox{n}") for n in (5, 7, 1)]
        futures = [queue.submit(QUERY, own) for own in asked]
        for own, mine in zip(asked, futures, strict=True):
            assert np.concatenate(await asyncio.gather(*mine)).tolist() == lengths(own)
        assert reranker.batches == [8, 5]

    served(test, reranker)


def test_the_first_documents_of_all_come_before_the_last_of_any() -> None:
    reranker, gate = PairReranker(), threading.Event()
    reranker.before = lambda: gate.wait(10)

    async def test(queue: ServedReranker) -> None:
        first = queue.submit(QUERY, documents(20, "first"))
        await asyncio.sleep(0.02)  # eight of them are being judged
        second = queue.submit(QUERY, documents(4, "second"))
        gate.set()
        await asyncio.gather(*first, *second)
        order = [document.text.split()[0] for document in reranker.seen]
        assert order[:8] == ["first"] * 8
        assert order[8:16].count("second") == 4

    served(test, reranker)


def test_a_request_whose_caller_left_costs_nothing_further() -> None:
    reranker, gate = PairReranker(), threading.Event()
    reranker.before = lambda: gate.wait(10)

    async def test(queue: ServedReranker) -> None:
        futures = queue.submit(QUERY, documents(100))
        await asyncio.sleep(0.02)
        for future in futures:
            future.cancel()
        gate.set()
        await asyncio.gather(*queue.submit(QUERY, documents(1, "another")))
        assert reranker.batches == [8, 1]

    served(test, reranker)


def test_one_poisoned_document_fails_its_own_request_alone() -> None:
    async def test(queue: ServedReranker) -> None:
        good, bad = (
            queue.submit(QUERY, documents(3)),
            queue.submit(QUERY, [Document("x", "nan"), Document("y", "crash")]),
        )
        assert np.concatenate(await asyncio.gather(*good)).tolist() == lengths(documents(3))
        outcomes = await asyncio.gather(*bad, return_exceptions=True)
        assert all(isinstance(outcome, Internal) for outcome in outcomes)

    served(test, PairReranker())


def test_a_judge_of_lists_is_given_whole_lists() -> None:
    reranker = LengthReranker()

    async def test(queue: ServedReranker) -> None:
        futures = [*queue.submit(QUERY, documents(5)), *queue.submit(QUERY, documents(2))]
        results = await asyncio.gather(*futures)
        assert [result.tolist() for result in results] == [lengths(documents(5)), lengths(documents(2))]
        assert reranker.calls == [5, 2]

    served(test, reranker)


def test_a_full_queue_refuses_and_takes_nothing() -> None:
    async def test(queue: ServedReranker) -> None:
        with pytest.raises(Overloaded, match="pairs to rerank"):
            queue.submit(QUERY, documents(21))
        assert len(await asyncio.gather(*queue.submit(QUERY, documents(20)))) == 20

    served(test, PairReranker(), max_waiting=20)


def test_a_reranker_that_cannot_be_loaded_is_unavailable_and_tried_again() -> None:
    async def body() -> None:
        attempts: list[int] = []

        def load() -> Any:
            attempts.append(1)
            raise RuntimeError("no weights")

        queue = ServedReranker("r", load, BatchingConfig(), RerankerTelemetry(Telemetry(_silent()), "r"), warm=True)
        await queue.start()
        while not attempts:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        with pytest.raises(Unavailable, match="tried again"):
            queue.submit(QUERY, documents(1))
        await queue.close()

    asyncio.run(body())


def _silent() -> Any:
    import structlog

    return structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])


def test_errors_of_a_batch_are_chamfers_own() -> None:
    assert all(isinstance(o, ChamferError) for o in judge(PairReranker(), [(QUERY, Document("a", "crash"))]))
