"""Serving a collection while it changes: no failed request, nothing in use closed, no outage by a bad snapshot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from support_service import FakeCollection, collection, pipeline

from chamfer.core.artifact import replace_file
from chamfer.core.errors import Corrupt, Unavailable
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.runtime.collection_server import ServedCollection, ServedResult
from chamfer.service.runtime.telemetry import CollectionTelemetry, Telemetry
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.request import SearchRequest


class Shelf:
    """Loads the snapshot that CURRENT names; records what it opened, and can be made to fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[FakeCollection] = []
        self.fault: Exception | None = None
        self.attempts = 0
        self.publish(1)

    def publish(self, number: int) -> None:
        replace_file(self.path / "CURRENT", f"snapshot-{number:06d}")  # as a commit does: `write_text` empties it first

    def __call__(self, path: Path) -> Pipeline:
        self.attempts += 1
        if self.fault is not None:
            raise self.fault
        self.opened.append(collection(snapshot=(path / "CURRENT").read_text()))
        return pipeline(collection=self.opened[-1])


Scenario = Callable[[ServedCollection, Shelf, Telemetry], Awaitable[None]]


def play(path: Path, scenario: Scenario, *, reload_seconds: float = 0.01, fault: Exception | None = None) -> Shelf:
    shelf = Shelf(path)
    shelf.fault = fault

    async def body() -> None:
        telemetry = Telemetry(structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[]))
        served = ServedCollection(
            "fables",
            path,
            shelf,
            batching=BatchingConfig(workers=2),
            reload_seconds=reload_seconds,
            telemetry=CollectionTelemetry(telemetry, "fables"),
        )
        await served.start()
        try:
            await scenario(served, shelf, telemetry)
        finally:
            await served.close()

    asyncio.run(asyncio.wait_for(body(), 60))
    return shelf


async def ready(served: ServedCollection) -> Pipeline:
    while True:
        try:
            return served.pipeline
        except Unavailable:
            await asyncio.sleep(0.002)


async def ask(served: ServedCollection) -> ServedResult:
    return await served.submit([SearchRequest(query="fox tail", k=3)])[0]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def metric(telemetry: Telemetry, name: str, **labels: str) -> float:
    return telemetry.registry.get_sample_value(name, {"collection": "fables", **labels}) or 0.0


def test_before_the_first_pipeline_is_warm_searches_are_unavailable(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        with pytest.raises(Unavailable, match="it is loading"):
            served.submit([SearchRequest(query="fox")])
        await ready(served)
        assert (await ask(served)).result.snapshot == "snapshot-000001"

    play(tmp_path, scenario)


def test_a_newer_snapshot_is_served_and_the_old_one_closed(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        shelf.publish(2)
        await until(lambda: served.pipeline.snapshot == "snapshot-000002")
        assert (await ask(served)).result.snapshot == "snapshot-000002"
        assert [opened.closed for opened in shelf.opened] == [True, False]

    shelf = play(tmp_path, scenario)
    assert all(opened.closed for opened in shelf.opened)


def test_concurrent_searches_do_not_fail_while_a_writer_publishes(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        done = False
        seen: list[str] = []

        async def caller() -> None:
            while not done:
                answer = await ask(served)
                seen.append(answer.result.snapshot)
                assert len(answer.result.hits) == 3

        callers = [asyncio.create_task(caller()) for _ in range(16)]
        for number in range(2, 12):
            shelf.publish(number)
            expected = f"snapshot-{number:06d}"
            await until(lambda expected=expected: served.pipeline.snapshot == expected)  # type: ignore[misc]
            await until(lambda expected=expected: seen[-1] == expected)  # type: ignore[misc]
        done = True
        await asyncio.gather(*callers)
        assert len(set(seen)) >= 10

    shelf = play(tmp_path, scenario)
    assert len(shelf.opened) == 11
    assert all(opened.closed for opened in shelf.opened)


def test_an_old_snapshot_is_not_closed_under_a_running_batch(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        gate, entered = threading.Event(), threading.Event()
        shelf.opened[0].channels["dense"].retriever.before = lambda: (entered.set(), gate.wait(30))
        slow = asyncio.create_task(ask(served))
        await until(entered.is_set)
        shelf.publish(2)
        await until(lambda: served.pipeline.snapshot == "snapshot-000002")
        assert not shelf.opened[0].closed
        gate.set()
        assert (await slow).result.snapshot == "snapshot-000001"
        await until(lambda: shelf.opened[0].closed)

    play(tmp_path, scenario)


def test_a_snapshot_that_cannot_be_opened_leaves_the_old_one_serving(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        shelf.fault = Corrupt("a secret path has a flipped bit")
        shelf.publish(2)
        await until(lambda: metric(telemetry, "chamfer_reload_failing") == 1)
        assert (await ask(served)).result.snapshot == "snapshot-000001"
        assert metric(telemetry, "chamfer_reloads_total", outcome="failed") >= 1
        with pytest.raises(Unavailable, match=r"\(corrupt\); snapshot-000001 is still served") as refusal:
            await served.reload()
        assert "secret" not in refusal.value.detail
        shelf.fault = None
        shelf.publish(3)
        await until(lambda: served.pipeline.snapshot == "snapshot-000003")
        assert metric(telemetry, "chamfer_reload_failing") == 0

    play(tmp_path, scenario)


def test_a_snapshot_that_opens_but_cannot_search_is_not_served(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        broken = collection(snapshot="snapshot-000002")
        broken.channels["dense"].retriever.before = lambda: 1 / 0
        served._load = lambda _: pipeline(collection=broken)
        shelf.publish(2)
        with pytest.raises(Unavailable, match="is still served"):
            await served.reload()
        assert broken.closed
        assert (await ask(served)).result.snapshot == "snapshot-000001"

    play(tmp_path, scenario, reload_seconds=30)


def test_a_collection_that_cannot_be_opened_at_first_is_tried_again(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await until(lambda: metric(telemetry, "chamfer_reload_failing") == 1)
        with pytest.raises(Unavailable, match=r"loading failed \(corrupt\)"):
            _ = served.pipeline
        shelf.fault = None
        await ready(served)

    play(tmp_path, scenario, fault=Corrupt("bad bytes"))


def test_a_snapshot_that_cannot_be_opened_is_retried_at_growing_intervals(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        polls = 0
        while polls < 40:
            await asyncio.sleep(0.01)
            polls += 1
        assert 1 <= shelf.attempts <= 10

    play(tmp_path, scenario, fault=Corrupt("bad bytes"))


def test_reloading_without_a_new_snapshot_changes_nothing(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        before = await ready(served)
        assert not await served.reload()
        assert served.pipeline is before
        shelf.publish(2)
        assert await served.reload()

    play(tmp_path, scenario, reload_seconds=30)


def test_closing_completes_the_queued_searches(tmp_path: Path) -> None:
    waiting: list[Any] = []

    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        waiting.extend(served.submit([SearchRequest(query="fox") for _ in range(40)]))

    play(tmp_path, scenario)
    assert all(len(future.result().result.hits) == 8 for future in waiting)


def test_searches_are_counted_by_outcome_and_stage(tmp_path: Path) -> None:
    async def scenario(served: ServedCollection, shelf: Shelf, telemetry: Telemetry) -> None:
        await ready(served)
        await ask(served)
        [bad] = served.submit([SearchRequest(query="fox", plan="none such")])
        await asyncio.wait([bad])
        assert metric(telemetry, "chamfer_searches_total", outcome="ok") == 1
        assert metric(telemetry, "chamfer_searches_total", outcome="invalid_input") == 1
        assert metric(telemetry, "chamfer_stage_seconds_count", stage="encode") == 1
        assert metric(telemetry, "chamfer_stage_seconds_count", stage="queue") == 1
        assert metric(telemetry, "chamfer_batch_searches_count") == 2
        assert metric(telemetry, "chamfer_queue_depth") == 0

    play(tmp_path, scenario)
