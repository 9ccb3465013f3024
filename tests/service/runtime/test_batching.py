"""The queue: shared batches, refused and dropped items, isolated errors, and that no item is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from chamfer.core.errors import ChamferError, Internal, InvalidInput, NotFound, Overloaded, Unavailable
from chamfer.service.runtime.batching import Batcher, BatchingConfig


class Watcher:
    """Records the events of the queue."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.left = 0
        self.turned_away = 0

    def batch_started(self, size: int) -> None:
        self.batches.append(size)

    def dropped(self, count: int) -> None:
        self.left += count

    def refused(self, count: int) -> None:
        self.turned_away += count


class Work:
    """Echoes its items; waits at a gate; records the batches it saw."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[str]) -> list[str | ChamferError]:
        self.seen.append(list(items))
        self.threads.append(threading.get_ident())
        if "nap" in items:
            time.sleep(0.8)
        assert self.gate.wait(30)
        if "crash" in items:
            raise RuntimeError("secret")
        if "short" in items:
            return []
        return [NotFound(item) if item.startswith("missing") else item.upper() for item in items]


Scenario = Callable[[Batcher[str, str], Work, Watcher], Awaitable[None]]


def play(scenario: Scenario, **config: float) -> None:
    async def body() -> None:
        work, watcher = Work(), Watcher()
        batcher: Batcher[str, str] = Batcher(work, BatchingConfig(**config), tokens=len, observer=watcher)
        batcher.start()
        try:
            await scenario(batcher, work, watcher)
        finally:
            work.gate.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(body(), 60))


async def blocked(batcher: Batcher[str, str], work: Work) -> asyncio.Future[str]:
    """A first item that occupies the worker until the gate opens."""
    work.gate.clear()
    [first] = batcher.submit(["first"])
    while not work.seen:
        await asyncio.sleep(0.001)
    return first


def test_a_single_item_is_run_without_waiting_for_others() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        assert await batcher.submit(["one"])[0] == "ONE"
        assert watcher.batches == [1]

    play(scenario)


def test_items_queued_while_the_worker_is_busy_share_the_next_batch() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        others = [batcher.submit([str(n)])[0] for n in range(10)]
        work.gate.set()
        assert await first == "FIRST"
        assert await asyncio.gather(*others) == [str(n) for n in range(10)]
        assert watcher.batches == [1, 10]

    play(scenario)


def test_items_submitted_in_the_same_turn_share_a_batch_even_when_idle() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        a, b = batcher.submit(["a"])[0], batcher.submit(["b"])[0]
        assert await asyncio.gather(a, b) == ["A", "B"]
        assert watcher.batches == [2]

    play(scenario)


def test_a_batch_keeps_to_its_size_and_token_budget() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        words = ["aaa", "bbb", "cccc", "d" * 50, "e", "f", "g", "h", "i"]
        others = [batcher.submit([word])[0] for word in words]
        work.gate.set()
        await asyncio.gather(first, *others)
        assert work.seen[1:] == [["aaa", "bbb", "cccc"], ["d" * 50], ["e", "f", "g", "h"], ["i"]]

    play(scenario, max_batch=4, token_budget=10)


def test_a_full_queue_refuses_at_once_and_names_the_setting() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        waiting = batcher.submit(["a", "b"])
        with pytest.raises(Overloaded, match=r"batching\.max_waiting") as refusal:
            batcher.submit(["c", "d"])
        assert refusal.value.retry_after_seconds >= 1
        assert watcher.turned_away == 2
        assert batcher.waiting == 2
        work.gate.set()
        assert await asyncio.gather(first, *waiting) == ["FIRST", "A", "B"]

    play(scenario, max_waiting=3)


def test_items_of_disconnected_callers_free_the_queue_and_are_not_run() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        gone, stays = batcher.submit(["gone", "stays"])
        gone.cancel()
        [newcomer] = batcher.submit(["newcomer"])
        newcomer.cancel()
        work.gate.set()
        assert await asyncio.gather(first, stays) == ["FIRST", "STAYS"]
        assert work.seen == [["first"], ["stays"]]
        assert watcher.left == 2

    play(scenario, max_waiting=2)


def test_a_caller_who_disconnects_during_a_batch_does_not_affect_others() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        first.cancel()
        work.gate.set()
        assert await batcher.submit(["next"])[0] == "NEXT"

    play(scenario)


def test_each_item_has_its_own_error() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        good, bad = batcher.submit(["good", "missing thing"])
        assert await good == "GOOD"
        with pytest.raises(NotFound, match="missing thing"):
            await bad

    play(scenario)


@pytest.mark.parametrize("item", ["crash", "short"])
def test_a_batch_that_breaks_is_an_internal_error_and_the_worker_goes_on(item: str) -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        with pytest.raises(Internal) as failure:
            await batcher.submit([item])[0]
        assert "secret" not in failure.value.detail
        assert await batcher.submit(["next"])[0] == "NEXT"

    play(scenario)


def test_closing_completes_queued_items_and_refuses_new_ones() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        waiting = batcher.submit(["a", "b"])
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="shutting down"):
            batcher.submit(["late"])
        work.gate.set()
        await closing
        assert [future.result() for future in (first, *waiting)] == ["FIRST", "A", "B"]

    play(scenario)


def test_items_are_refused_before_start() -> None:
    batcher: Batcher[str, str] = Batcher(Work(), BatchingConfig(), tokens=len, observer=Watcher())
    with pytest.raises(Unavailable, match="not started"):
        batcher.submit(["a"])


def test_two_workers_run_two_batches_at_once() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        first = await blocked(batcher, work)
        [second] = batcher.submit(["second"])
        while len(work.seen) < 2:
            await asyncio.sleep(0.001)
        work.gate.set()
        assert await asyncio.gather(first, second) == ["FIRST", "SECOND"]

    play(scenario, workers=2)


async def threads_of_batches(batcher: Batcher[str, str], work: Work, count: int) -> set[bool]:
    """Whether batches ran on the event loop's own thread."""
    work.threads.clear()
    for n in range(count):
        assert await batcher.submit([f"x{n}"])[0] == f"X{n}"
    return {thread == threading.get_ident() for thread in work.threads}


def test_fast_batches_run_on_the_event_loop_until_one_is_slow() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        assert await threads_of_batches(batcher, work, 10) == {False}
        assert await threads_of_batches(batcher, work, 400) == {False, True}
        assert await threads_of_batches(batcher, work, 20) == {True}
        assert await batcher.submit(["nap"])[0] == "NAP"
        assert await threads_of_batches(batcher, work, 5) == {False}

    play(scenario, inline_ms=500.0)


def test_with_inline_ms_of_zero_every_batch_runs_in_a_worker_thread() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        assert await threads_of_batches(batcher, work, 500) == {False}

    play(scenario, inline_ms=0.0)


def test_a_batch_that_breaks_on_the_event_loop_is_an_internal_error() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        await threads_of_batches(batcher, work, 400)
        with pytest.raises(Internal):
            await batcher.submit(["crash"])[0]
        assert await threads_of_batches(batcher, work, 1) == {True}

    play(scenario, inline_ms=1000.0)


def test_other_tasks_run_between_two_batches_on_the_event_loop() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        await threads_of_batches(batcher, work, 400)
        work.seen.clear()
        futures = batcher.submit(["a", "b", "c"])
        seen = []
        while not all(future.done() for future in futures):
            await asyncio.sleep(0)
            seen.append(len(work.seen))
        assert {1, 2, 3} <= set(seen)

    play(scenario, inline_ms=1000.0, max_batch=1)


def test_many_callers_all_get_their_own_answers() -> None:
    async def scenario(batcher: Batcher[str, str], work: Work, watcher: Watcher) -> None:
        async def caller(n: int) -> None:
            for turn in range(20):
                assert await batcher.submit([f"{n}-{turn}-x"])[0] == f"{n}-{turn}-X"

        await asyncio.gather(*(caller(n) for n in range(64)))
        assert sum(watcher.batches) == 64 * 20

    play(scenario, workers=2, max_batch=16)


@pytest.mark.parametrize("name", ["max_waiting", "max_batch", "token_budget", "workers"])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"batching.{name}"):
        BatchingConfig(**{name: 0})


@pytest.mark.parametrize("milliseconds", [-1.0, float("nan")])
def test_a_negative_inline_time_is_refused(milliseconds: float) -> None:
    with pytest.raises(InvalidInput, match=r"batching\.inline_ms"):
        BatchingConfig(inline_ms=milliseconds)
