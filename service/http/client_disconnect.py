"""Waits for the results of a request, and cancels its work if the client disconnects meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from chamfer.core.errors import ChamferError
from chamfer.service.http.errors import ClientDisconnected
from chamfer.service.search.deadlines import exceeded

WATCH_AFTER_SECONDS = 0.02
Result = TypeVar("Result")


async def await_results(
    receive: Receive, futures: Sequence[asyncio.Future[Result]], timeout_seconds: float | None = None
) -> list[Result | ChamferError]:
    """The result or error of each future, in order; DeadlineExceeded for each that is not done after the timeout.

    All unfinished futures are cancelled at the end. Raises ClientDisconnected if the client disconnects first.
    """
    watch = _DisconnectWatch(receive, futures)
    try:
        if timeout_seconds is not None and futures:
            await asyncio.wait(futures, timeout=timeout_seconds)
        results: list[Result | ChamferError] = []
        for future in futures:
            if timeout_seconds is not None and not future.done():
                results.append(exceeded("the result was ready"))
                continue
            try:
                results.append(await future)
            except ChamferError as error:
                results.append(error)
        return results
    except asyncio.CancelledError:
        if watch.disconnected:
            raise ClientDisconnected from None
        raise
    finally:
        watch.stop()
        for future in futures:
            future.cancel()


class _DisconnectWatch:
    """Cancels futures when the client disconnects. Starts after a delay, within which most searches have finished."""

    def __init__(self, receive: Receive, futures: Sequence[asyncio.Future[Any]]) -> None:
        self.disconnected = False
        self._receive = receive
        self._futures = futures
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)

    def _start(self) -> None:
        self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        for future in self._futures:
            future.cancel()

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
