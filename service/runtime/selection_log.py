"""The selection log: what was retrieved, shown and clicked, as NDJSON. It is used to correct selection bias in training
(CET, clicks).

The log is disabled unless a directory is set. Requests put records on a bounded queue and continue; one thread formats
and writes them. Records that do not fit on the queue or the disk are dropped and counted, without effect on requests.

A search is one line: event "search", request_id, collection, snapshot, plan, time (seconds since 1970), query_digest,
query (if text is kept), doc_ids of the pool in rank order, shown (how many of the first were returned), features by
name (aligned with doc_ids, null where a stage did not see the document). A click line has event "click", request_id,
collection, time and clicks: [{doc_id, rank}].
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
from chamfer.service.runtime.json_encoding import to_json
from chamfer.service.runtime.telemetry import Telemetry
from chamfer.service.search.request import SearchResult

FILES = 8
SUFFIX = ".selections.ndjson"
_DRAIN_SECONDS = 5.0
_SECONDS_BETWEEN_ERRORS = 60.0
MakeRecord = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionLogConfig:
    """The selection log of one service.

    directory    where the log is written; unset disables the log
    sample       fraction of searches that are recorded
    depth        recorded candidates per search; at least those shown are recorded
    text         whether query texts are stored; their digests always are
    max_bytes    size limit of the directory; the oldest of its eight files is deleted first
    max_waiting  largest number of records queued for the disk
    remember     number of recent searches for which clicks are accepted
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
                raise InvalidInput(f"selection_log.{name} is {getattr(self, name)}, expected at least {least}")


class SelectionLog:
    """The log of one service. All methods but `start` and `close` run on the event loop and never block."""

    def __init__(
        self, config: SelectionLogConfig, telemetry: Telemetry, *, draw: Callable[[], float] = random.random
    ) -> None:
        self._config = config
        self._telemetry = telemetry
        self._draw = draw
        self._queue: Queue[MakeRecord] = Queue(config.max_waiting)
        self._shown: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def enabled(self) -> bool:
        """Whether a directory is set."""
        return self._config.directory is not None

    async def start(self) -> None:
        """Starts the writing thread, if the log is enabled."""
        if self._config.directory is not None:
            files = RotatingFiles(self._config.directory, self._config.max_bytes)
            self._thread = threading.Thread(target=self._write, args=(files,), name="selection-log", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Writes the queued records, for a few seconds at most."""
        self._closing.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _DRAIN_SECONDS)

    def pool_size(self, k: int) -> int:
        """How many candidates a search for k hits should return for the log; 0 if it is not sampled."""
        return max(k, self._config.depth) if self.enabled and self._draw() < self._config.sample else 0

    def record_search(self, request_id: str, collection: str, query: str, result: SearchResult) -> None:
        """Records a search that returned a pool; any other search is not recorded."""
        pool = result.pool
        if pool is None:
            return
        self._shown[collection, request_id] = tuple(hit.doc_id for hit in result.hits)
        self._shown.move_to_end((collection, request_id))
        while len(self._shown) > self._config.remember:
            self._shown.popitem(last=False)
        now = time()

        def record() -> Mapping[str, Any]:
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
                "features": {name: _nan_to_none(values) for name, values in pool.features().items()},
            }

        self._put(record)

    def shown(self, request_id: str, collection: str) -> tuple[str, ...] | None:
        """The doc_ids that a recorded search returned, in order; None if it is not recorded or was forgotten."""
        return self._shown.get((collection, request_id))

    def record_clicks(self, request_id: str, collection: str, clicks: Sequence[tuple[str, int]]) -> bool:
        """Records clicks (doc_id, rank from 1) on a recorded search; False if the queue is full."""
        record = {
            "event": "click",
            "request_id": request_id,
            "collection": collection,
            "time": time(),
            "clicks": [{"doc_id": doc_id, "rank": rank} for doc_id, rank in clicks],
        }
        return self._put(lambda: record)

    def _put(self, record: MakeRecord) -> bool:
        try:
            self._queue.put_nowait(record)
        except Full:
            self._telemetry.selections.labels("queue_full").inc()
            return False
        return True

    def _write(self, files: RotatingFiles) -> None:
        next_error_at = 0.0
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                make_record = self._queue.get(timeout=0.2)
            except Empty:
                continue
            try:
                files.append(to_json(make_record()) + b"\n")
                self._telemetry.selections.labels("written").inc()
            except Exception as error:
                self._telemetry.selections.labels("not_written").inc()
                if monotonic() >= next_error_at:
                    self._telemetry.log.error("selection log cannot be written", error=str(error))
                    next_error_at = monotonic() + _SECONDS_BETWEEN_ERRORS
        files.close()


class RotatingFiles:
    """Appends whole lines to files of an eighth of `max_bytes`, and deletes the oldest so that the sum stays below it.

    File names begin with the time, so that they sort in the order of writing. Processes may share a directory.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_file_bytes = max_bytes // FILES
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self._size = 0

    def append(self, line: bytes) -> None:
        """Appends a line, entirely or not at all; raises OSError, or InvalidInput for a line larger than a file."""
        if len(line) > self._max_file_bytes:
            raise InvalidInput(
                f"a record has {len(line)} bytes, and a file of the selection log holds at most {self._max_file_bytes} "
                "(selection_log.max_bytes)"
            )
        if self._descriptor is None or self._size + len(line) > self._max_file_bytes:
            self._rotate(len(line))
        assert self._descriptor is not None
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted on the disk")
        except OSError:
            self._undo()
            raise
        self._size += len(line)

    def close(self) -> None:
        """Closes the open file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self, line_bytes: int) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        kept = 0
        for path in sorted(self._directory.glob(f"*{SUFFIX}"), reverse=True):
            kept += path.stat().st_size
            if kept + max(self._max_file_bytes, line_bytes) > self._max_bytes:
                path.unlink(missing_ok=True)
        name = f"{time_ns():020d}-{os.getpid()}{SUFFIX}"
        self._descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = 0

    def _undo(self) -> None:
        """Truncates a partial line; if that fails too, the next record starts another file."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.close()


def _nan_to_none(values: F32) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def query_digest(text: str) -> str:
    """A digest that identifies a query without its text: BLAKE2b of 16 bytes, hexadecimal."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
