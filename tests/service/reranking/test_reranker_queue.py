"""The queue of a reranker: shared batches, isolated failures, deadlines, and callers that disconnect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from support_service import LengthReranker, PairReranker

from chamfer.core.errors import Internal, Overloaded, Unavailable
from chamfer.core.types import Document, Query
from chamfer.service.reranking.reranker_queue import ServedReranker
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.runtime.telemetry import RerankerTelemetry, Telemetry

QUERY = Query("q", "which fox?")


def documents(n: int, text: str = "fox") -> list[Document]:
    return [Document(str(i), text + " x" * i) for i in range(n)]


def lengths(scored: Sequence[Document]) -> list[float]:
    return [float(len(document.text)) for document in scored]


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
        requests = [documents(n, f"fox{n}") for n in (5, 7, 1)]
        futures = [queue.submit(QUERY, request) for request in requests]
        for request, mine in zip(requests, futures, strict=True):
            assert np.concatenate(await asyncio.gather(*mine)).tolist() == lengths(request)
        assert reranker.batches == [8, 5]

    served(test, reranker)


def test_first_documents_of_every_request_are_scored_before_the_last_of_any() -> None:
    reranker, gate = PairReranker(), threading.Event()
    reranker.before = lambda: gate.wait(10)

    async def test(queue: ServedReranker) -> None:
        first = queue.submit(QUERY, documents(20, "first"))
        await asyncio.sleep(0.02)  # eight of them are being scored
        second = queue.submit(QUERY, documents(4, "second"))
        gate.set()
        await asyncio.gather(*first, *second)
        order = [document.text.split()[0] for document in reranker.seen]
        assert order[:8] == ["first"] * 8
        assert order[8:16].count("second") == 4

    served(test, reranker)


def test_pairs_of_a_disconnected_caller_are_not_scored() -> None:
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


def test_a_failing_document_fails_only_its_own_request() -> None:
    async def test(queue: ServedReranker) -> None:
        good, bad = (
            queue.submit(QUERY, documents(3)),
            queue.submit(QUERY, [Document("x", "nan"), Document("y", "crash")]),
        )
        assert np.concatenate(await asyncio.gather(*good)).tolist() == lengths(documents(3))
        outcomes = await asyncio.gather(*bad, return_exceptions=True)
        assert all(isinstance(outcome, Internal) for outcome in outcomes)

    served(test, PairReranker())


def test_a_listwise_reranker_is_given_whole_lists() -> None:
    reranker = LengthReranker()

    async def test(queue: ServedReranker) -> None:
        futures = [*queue.submit(QUERY, documents(5)), *queue.submit(QUERY, documents(2))]
        results = await asyncio.gather(*futures)
        assert [result.tolist() for result in results] == [lengths(documents(5)), lengths(documents(2))]
        assert reranker.calls == [5, 2]

    served(test, reranker)


def test_a_full_queue_refuses_a_request_and_queues_none_of_it() -> None:
    async def test(queue: ServedReranker) -> None:
        with pytest.raises(Overloaded, match="pairs to rerank"):
            queue.submit(QUERY, documents(21))
        assert len(await asyncio.gather(*queue.submit(QUERY, documents(20)))) == 20

    served(test, PairReranker(), max_waiting=20)


def test_a_reranker_that_cannot_be_loaded_is_unavailable_and_retried() -> None:
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
        with pytest.raises(Unavailable, match="is retried"):
            queue.submit(QUERY, documents(1))
        await queue.close()

    asyncio.run(body())


def _silent() -> Any:
    import structlog

    return structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
