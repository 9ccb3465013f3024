"""The queue between the event loop and the worker threads: many awaiting callers, one synchronous call per batch.

A batch starts as soon as a worker is free and takes whatever is queued then: a single item when idle, more under load.
It is never delayed to fill up. Items whose callers have disconnected are dropped before they run. Errors belong to
single items.

The items of one caller may be ranked: everyone's first item runs before anyone's second, counted from the position of
the queue when they arrive (start-time fair queueing, Goyal et al., SIGCOMM 1996), so that no caller starves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from queue import SimpleQueue
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from chamfer.core.errors import ChamferError, Internal, InvalidInput, Overloaded, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingConfig:
    """Limits of the queue of one collection.

    max_waiting   largest number of queued searches; further ones are refused with status 429
    max_batch     largest number of searches in one batch
    token_budget  estimated query tokens in one batch (four characters per token); a single item may exceed it
    workers       number of threads that run batches
    inline_ms     while batches take less time than this, they run on the event loop itself, because handing them to a
                  thread would add a large part of that time; 0 always uses a thread
    """

    max_waiting: int = 256
    max_batch: int = 64
    token_budget: int = 16_384
    workers: int = 1
    inline_ms: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_batch", "token_budget", "workers"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"batching.{name} is {getattr(self, name)}, expected at least 1")
        if not self.inline_ms >= 0:
            raise InvalidInput(f"batching.inline_ms is {self.inline_ms}, expected at least 0")


class BatchObserver(Protocol):
    """Receives the events of the queue; called on the event loop."""

    def batch_started(self, size: int) -> None: ...

    def dropped(self, count: int) -> None: ...

    def refused(self, count: int) -> None: ...


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    position: tuple[int, int]  # (turn, order of arrival)
    item: Item
    tokens: int
    future: asyncio.Future[Result]

    def __lt__(self, other: _Waiting[Item, Result]) -> bool:
        return self.position < other.position


_Batch = list[_Waiting[Item, Result]]


class Batcher(Generic[Item, Result]):
    """Collects items and passes them to `run` in a worker thread.

    `run` takes a sequence and returns one result or error for each item, in order. `tokens` estimates the cost of an
    item against the budget; `what` names the items in messages. Use it from one event loop, after `start`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | ChamferError]],
        config: BatchingConfig,
        *,
        tokens: Callable[[Item], int],
        observer: BatchObserver,
        what: str = "searches",
    ) -> None:
        self._run = run
        self._what = what
        self._config = config
        self._tokens = tokens
        self._observer = observer
        self._waiting: list[_Waiting[Item, Result]] = []  # a heap
        self._arrivals = 0
        self._turn = 0  # the turn that is being served
        self._work: SimpleQueue[_Batch[Item, Result] | None] = SimpleQueue()
        self._idle = config.workers
        self._seconds_per_item = 0.01
        # The longest recent batch. It decays slowly, so that a mixture of fast and slow searches counts as slow.
        self._longest_seconds = 1.0
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop
        self._dispatch_scheduled = False
        self._closing: asyncio.Event | None = None

    def start(self) -> None:
        """Starts the worker threads; call it on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._config.workers):
            thread = threading.Thread(target=self._serve, name=f"{self._what}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def waiting(self) -> int:
        """The number of queued items, including those whose callers have disconnected."""
        return len(self._waiting)

    def submit(self, items: Sequence[Item], *, ranked: bool = False) -> list[asyncio.Future[Result]]:
        """One future for each item; cancel it when its caller disconnects. `ranked` items are given most urgent first.

        Raises Overloaded if not all items fit into the queue, and Unavailable once `close` has begun. In both cases
        nothing is queued.
        """
        if self._closing is not None or not self._threads:
            reason = "the service is shutting down" if self._closing else f"the queue of {self._what} has not started"
            raise Unavailable(reason)
        if len(self._waiting) + len(items) > self._config.max_waiting:
            self._refuse(len(items))
        futures = []
        for rank, item in enumerate(items):
            future: asyncio.Future[Result] = self._loop.create_future()
            position = (self._turn + rank if ranked else self._turn, self._arrivals)
            heappush(self._waiting, _Waiting(position, item, self._tokens(item), future))
            self._arrivals += 1
            futures.append(future)
        self._dispatch_soon()
        return futures

    async def close(self) -> None:
        """Refuses new items, completes the queued ones, and ends the threads."""
        if self._closing is None:
            self._closing = asyncio.Event()
            self._end_if_drained()
        await self._closing.wait()
        threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            await self._loop.run_in_executor(None, thread.join)

    def _refuse(self, count: int) -> None:
        self._drop_disconnected()
        if len(self._waiting) + count <= self._config.max_waiting:
            return
        self._observer.refused(count)
        seconds = self._seconds_per_item * (len(self._waiting) + count) / self._config.workers
        raise Overloaded(
            f"{len(self._waiting)} {self._what} are queued, and {count} more would exceed the limit of "
            f"{self._config.max_waiting} (batching.max_waiting); retry later",
            retry_after_seconds=min(max(seconds, 1.0), 60.0),
        )

    def _drop_disconnected(self) -> None:
        kept = [w for w in self._waiting if not w.future.done()]
        heapify(kept)
        if len(kept) < len(self._waiting):
            self._observer.dropped(len(self._waiting) - len(kept))
        self._waiting = kept

    def _dispatch_soon(self) -> None:
        """Dispatches at the end of this iteration of the loop, so that requests read in it share a batch."""
        if self._idle and self._waiting and not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        while self._idle and self._waiting:
            batch = self._next_batch()
            if not batch:
                continue
            self._idle -= 1
            self._observer.batch_started(len(batch))
            if self._longest_seconds * 1e3 < self._config.inline_ms:
                results, elapsed = self._timed(batch)
                self._account(batch, elapsed)
                _deliver(batch, results)
                break  # the rest in another iteration of the loop, so that sockets are served first
            self._work.put(batch)
        self._dispatch_soon()
        self._end_if_drained()

    def _next_batch(self) -> _Batch[Item, Result]:
        batch: _Batch[Item, Result] = []
        tokens = dropped = 0
        while self._waiting and len(batch) < self._config.max_batch:
            first = self._waiting[0]
            if first.future.done():
                dropped += 1
            elif batch and tokens + first.tokens > self._config.token_budget:
                break
            else:
                batch.append(first)
                tokens += first.tokens
            self._turn = heappop(self._waiting).position[0]
        if dropped:
            self._observer.dropped(dropped)
        return batch

    def _end_if_drained(self) -> None:
        if self._closing is not None and not self._waiting and self._idle == self._config.workers:
            self._closing.set()

    def _serve(self) -> None:
        """The loop of a worker thread."""
        while (batch := self._work.get()) is not None:
            self._loop.call_soon_threadsafe(self._finish, batch, *self._timed(batch))
            del batch

    def _timed(self, batch: _Batch[Item, Result]) -> tuple[Sequence[Result | ChamferError], float]:
        started = perf_counter()
        results = self._results(batch)
        return results, perf_counter() - started

    def _results(self, batch: _Batch[Item, Result]) -> Sequence[Result | ChamferError]:
        try:
            results = self._run([waiting.item for waiting in batch])
            if len(results) == len(batch):
                return results
            raise Internal(f"{len(results)} results were returned for {len(batch)} {self._what}")
        except ChamferError as error:
            return [error] * len(batch)
        except Exception as error:  # a worker must survive any failure of a batch
            failure = Internal("the batch failed")
            failure.__cause__ = error
            return [failure] * len(batch)

    def _finish(self, batch: _Batch[Item, Result], results: Sequence[Result | ChamferError], elapsed: float) -> None:
        """Runs on the loop after a batch in a thread: dispatches the next batch, then delivers the results."""
        self._account(batch, elapsed)
        self._dispatch()
        _deliver(batch, results)

    def _account(self, batch: _Batch[Item, Result], elapsed: float) -> None:
        self._idle += 1
        self._longest_seconds = max(elapsed, 0.97 * self._longest_seconds)
        self._seconds_per_item += 0.2 * (elapsed / len(batch) - self._seconds_per_item)


def _deliver(batch: _Batch[Item, Result], results: Sequence[Result | ChamferError]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():
            continue
        if isinstance(result, ChamferError):
            waiting.future.set_exception(result)
            waiting.future.exception()  # marks it as retrieved: asyncio would log it if the caller has gone
        else:
            waiting.future.set_result(result)
