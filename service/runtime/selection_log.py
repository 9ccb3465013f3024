"""What was retrieved, shown and clicked, as NDJSON: the log that corrects selection bias (CET, clicks).

Off unless a directory is set. Requests hand records to a bounded queue and go on; one thread builds the lines and
writes them. Whatever does not fit, in the queue or on the disk, is dropped and counted, and no request knows of it.

A search is one line: event "search", request_id, collection, snapshot, plan, time (seconds since 1970), query_digest,
query (if text is kept), doc_ids of the pool in rank order, shown (the first so many of them), features by name (aligned
with doc_ids, null where a stage did not see the document). A click line has event "click", request_id, collection, time
and clicks: [{doc_id, rank}].
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from queue import Empty, Full, Queue
from time import monotonic, time, time_ns
from typing import Any

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32
from chamfer.service.http.errors import to_json
from chamfer.service.runtime.telemetry import Telemetry
from chamfer.service.search.request import SearchResult

FILES = 8
SUFFIX = ".selections.ndjson"
_DRAIN_SECONDS = 5.0
_QUIET_SECONDS = 60.0
Line = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionLogConfig:
    """directory   where the log goes; none: nothing is recorded
    sample      the share of searches that are recorded
    depth       candidates of a search that are recorded, at least those shown
    text        whether the query itself is kept; its digest always is
    max_bytes   of the whole directory; the oldest of eight files goes first
    max_waiting records that wait for the disk
    remember    searches whose clicks are still taken
    """

    directory: Path | None = None
    sample: float = 1.0
    depth: int = 100
    text: bool = False
    max_bytes: int = 256 << 20
    max_waiting: int = 1024
    remember: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise InvalidInput(f"selection_log.sample is {self.sample}, expected above 0 and at most 1")
        for name, least in (("depth", 1), ("max_bytes", 1 << 16), ("max_waiting", 1), ("remember", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"selection_log.{name} is {getattr(self, name)}, expected {least} or more")


class SelectionLog:
    """The log of one service. `wants`, `searched` and `clicked` are called on the event loop and never wait."""

    def __init__(
        self, config: SelectionLogConfig, telemetry: Telemetry, *, draw: Callable[[], float] = random.random
    ) -> None:
        self._config = config
        self._telemetry = telemetry
        self._draw = draw
        self._queue: Queue[Line] = Queue(config.max_waiting)
        self._shown: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self._config.directory is not None

    async def start(self) -> None:
        """Starts the writing thread, if the log is on."""
        if self._config.directory is not None:
            files = RotatingFiles(self._config.directory, self._config.max_bytes)
            self._thread = threading.Thread(target=self._write, args=(files,), name="selection-log", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Writes what waits, for a few seconds at most."""
        self._closing.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _DRAIN_SECONDS)

    def wants(self, k: int) -> int:
        """How many candidates a search should hand over; 0 for one that is not recorded."""
        return max(k, self._config.depth) if self.on and self._draw() < self._config.sample else 0

    def searched(self, request_id: str, collection: str, query: str, result: SearchResult) -> None:
        """Records a search that had a pool."""
        pool = result.pool
        if pool is None:
            return
        self._shown[collection, request_id] = tuple(hit.doc_id for hit in result.hits)
        self._shown.move_to_end((collection, request_id))
        while len(self._shown) > self._config.remember:
            self._shown.popitem(last=False)
        now = time()

        def line() -> Mapping[str, Any]:
            return {
                "event": "search",
                "request_id": request_id,
                "collection": collection,
                "snapshot": result.snapshot,
                "plan": result.plan.name,
                "time": now,
                "query_digest": query_digest(query),
                **({"query": query} if self._config.text else {}),
                "doc_ids": pool.doc_ids,
                "shown": len(result.hits),
                "features": {name: _or_none(values) for name, values in pool.features().items()},
            }

        self._put(line)

    def shown(self, request_id: str, collection: str) -> tuple[str, ...] | None:
        """What a recorded search showed, in order; None for one that was not recorded or is no longer remembered."""
        return self._shown.get((collection, request_id))

    def clicked(self, request_id: str, collection: str, clicks: Sequence[tuple[str, int]]) -> bool:
        """Records clicks (doc_id, rank from 1) on a recorded search; False if they had to be dropped."""
        body = {
            "event": "click",
            "request_id": request_id,
            "collection": collection,
            "time": time(),
            "clicks": [{"doc_id": doc_id, "rank": rank} for doc_id, rank in clicks],
        }
        return self._put(lambda: body)

    def _put(self, line: Line) -> bool:
        try:
            self._queue.put_nowait(line)
        except Full:
            self._telemetry.selections.labels("queue_full").inc()
            return False
        return True

    def _write(self, files: RotatingFiles) -> None:
        quiet_until = 0.0
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                line = self._queue.get(timeout=0.2)
            except Empty:
                continue
            try:
                files.append(to_json(line()) + b"\n")
                self._telemetry.selections.labels("written").inc()
            except Exception as error:
                self._telemetry.selections.labels("not_written").inc()
                if monotonic() >= quiet_until:
                    self._telemetry.log.error("selection log cannot be written", error=str(error))
                    quiet_until = monotonic() + _QUIET_SECONDS
        files.close()


class RotatingFiles:
    """Appends whole lines to files of an eighth of `max_bytes`, and removes the oldest so that all stay below it.

    Names begin with the time, so that their order is that of writing; several processes may share a directory.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._most = max_bytes // FILES
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self._size = 0

    def append(self, line: bytes) -> None:
        """Appends a line, whole or not at all; raises OSError, or InvalidInput for a line beyond a file's size."""
        if len(line) > self._most:
            raise InvalidInput(f"a record has {len(line)} bytes, a file of the selection log {self._most} (max_bytes)")
        if self._descriptor is None or self._size + len(line) > self._most:
            self._rotate(len(line))
        assert self._descriptor is not None
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes fitted on the disk")
        except OSError:
            self._undo()
            raise
        self._size += len(line)

    def close(self) -> None:
        """Closes the file that is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self, needed: int) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        kept = 0
        for path in sorted(self._directory.glob(f"*{SUFFIX}"), reverse=True):
            kept += path.stat().st_size
            if kept + max(self._most, needed) > self._max_bytes:
                path.unlink(missing_ok=True)
        name = f"{time_ns():020d}-{os.getpid()}{SUFFIX}"
        self._descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = 0

    def _undo(self) -> None:
        """Takes half a line off again; where even that fails, the next record begins another file."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.close()


def _or_none(values: F32) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def query_digest(text: str) -> str:
    """A name for a query that does not show it: BLAKE2b with 16 bytes, hexadecimal."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
