"""Waiting for futures while the client may leave or the time may run out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from chamfer.core.errors import ChamferError, DeadlineExceeded
from chamfer.service.http.errors import ClientLeft

WATCH_AFTER_SECONDS = 0.02
Result = TypeVar("Result")


async def answers(
    receive: Receive, futures: Sequence[asyncio.Future[Result]], seconds: float | None = None
) -> list[Result | ChamferError]:
    """What the futures give, in order; DeadlineExceeded for each that is not done after `seconds`.

    If the client leaves before, they are cancelled; raises ClientLeft then.
    """
    watch = _DisconnectWatch(receive, futures)
    try:
        if seconds is not None and futures:
            await asyncio.wait(futures, timeout=seconds)
        found: list[Result | ChamferError] = []
        for future in futures:
            if seconds is not None and not future.done():
                found.append(DeadlineExceeded("the time was over before"))
                continue
            try:
                found.append(await future)
            except ChamferError as error:
                found.append(error)
        return found
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        raise
    finally:
        watch.stop()
        for future in futures:
            future.cancel()


class _DisconnectWatch:
    """Cancels futures when the client leaves. Starts only after a while: most searches are over before."""

    def __init__(self, receive: Receive, futures: Sequence[asyncio.Future[Any]]) -> None:
        self.client_left = False
        self._receive = receive
        self._futures = futures
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)

    def _start(self) -> None:
        self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
        for future in self._futures:
            future.cancel()

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
