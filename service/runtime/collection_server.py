"""Serves one collection: opens it, warms it up, queues searches, and switches to newer snapshots.

Every batch runs on one snapshot from start to end. A replaced snapshot is closed when its last batch has finished.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter

from chamfer.core.errors import ChamferError, Internal, NotFound, Unavailable
from chamfer.service.runtime.batching import CHARACTERS_PER_TOKEN, Batcher, BatchingConfig
from chamfer.service.runtime.pipeline_loader import LoadPipeline
from chamfer.service.runtime.telemetry import CollectionTelemetry
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.request import SearchRequest, SearchResult

POINTER = "CURRENT"
LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ServedResult:
    """A search result, and how long its request waited in the queue, in milliseconds."""

    result: SearchResult
    queue_ms: float


@dataclass(frozen=True, slots=True)
class _Queued:
    request: SearchRequest
    submitted: float


class _Generation:
    """One pipeline and the batches that run on it."""

    def __init__(self, pipeline: Pipeline, marker: bytes) -> None:
        self.pipeline = pipeline
        self.marker = marker
        self._running = 0
        self._retired = False
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Registers a batch; False if the generation has been closed."""
        with self._lock:
            if self._retired:
                return False
            self._running += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._retired and not self._running
        if last:
            self.pipeline.close()

    def retire(self) -> None:
        """Accepts no further batch, and closes the pipeline now or when the last running batch has finished."""
        with self._lock:
            idle = not self._retired and not self._running
            self._retired = True
        if idle:
            self.pipeline.close()


class ServedCollection:
    """A named collection: its queue, its current pipeline, and the task that polls for newer snapshots."""

    def __init__(
        self,
        name: str,
        path: Path,
        load: LoadPipeline,
        *,
        batching: BatchingConfig,
        reload_seconds: float,
        telemetry: CollectionTelemetry,
    ) -> None:
        self.name = name
        self._path = path
        self._load = load
        self._reload_seconds = reload_seconds
        self._telemetry = telemetry
        self._generation: _Generation | None = None
        self._failure: ChamferError | None = None
        self._reloading = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._batcher: Batcher[_Queued, ServedResult] = Batcher(
            self._run, batching, tokens=_estimated_tokens, observer=telemetry
        )
        telemetry.watch_queue(lambda: self._batcher.waiting)

    async def start(self) -> None:
        """Starts the queue and, in the background, loading and polling."""
        self._batcher.start()
        self._watch = asyncio.create_task(self._keep_current(), name=f"watch-{self.name}")

    async def close(self) -> None:
        """Stops polling, completes the queued searches, and closes the pipeline."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._batcher.close()
        if self._generation is not None:
            self._generation.retire()
            self._generation = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that serves now; raises Unavailable until the first one is warm."""
        if self._generation is None:
            reason = f"loading failed ({self._failure.code}) and is retried" if self._failure else "it is loading"
            raise Unavailable(f"collection {self.name!r} is not ready: {reason}")
        return self._generation.pipeline

    def submit(self, requests: Sequence[SearchRequest]) -> list[asyncio.Future[ServedResult]]:
        """One future for each request; cancel it when the client disconnects. Raises Overloaded or Unavailable."""
        if self._generation is None:
            _ = self.pipeline
        now = perf_counter()
        return self._batcher.submit([_Queued(request, now) for request in requests])

    async def reload(self) -> bool:
        """Opens the newest snapshot unless it is being served already; True if the pipeline was replaced.

        Raises Unavailable if it cannot be opened; the current one continues to serve.
        """
        async with self._reloading:
            marker = await asyncio.to_thread(_pointer, self._path)
            if self._generation is not None and self._generation.marker == marker:
                return False
            try:
                pipeline = await asyncio.to_thread(self._open_warm)
            except Exception as error:
                raise self._failed(error) from error
            previous, self._generation = self._generation, _Generation(pipeline, marker)
            self._failure = None
            self._telemetry.reloaded(succeeded=True)
            self._telemetry.log.info("serving snapshot", snapshot=pipeline.snapshot)
            if previous is not None:
                previous.retire()
            return True

    def _open_warm(self) -> Pipeline:
        pipeline = self._load(self._path)
        try:
            pipeline.warm_up()
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    def _failed(self, error: Exception) -> Unavailable:
        self._failure = error if isinstance(error, ChamferError) else Internal(str(error))
        serving = self._generation.pipeline.snapshot if self._generation else None
        self._telemetry.reloaded(succeeded=False)
        unexpected = None if isinstance(error, ChamferError) else error  # a ChamferError's message needs no traceback
        self._telemetry.log.error(
            "snapshot cannot be opened",
            serving=serving,
            code=self._failure.code,
            detail=self._failure.detail,
            exc_info=unexpected,
        )
        return Unavailable(
            f"the newest snapshot of {self.name!r} cannot be opened ({self._failure.code}); "
            f"{f'{serving} is still served' if serving else 'no snapshot is served yet'}; see the log for details"
        )

    async def _keep_current(self) -> None:
        """Loads, then polls the pointer file; a snapshot that cannot be opened is retried at growing intervals."""
        failed, failures, retry_at = None, 0, 0.0
        while True:
            marker = await asyncio.to_thread(_pointer, self._path)
            if marker != failed or monotonic() >= retry_at:
                failures = failures if marker == failed else 0
                try:
                    await self.reload()
                    failed = None
                except Unavailable:
                    failed, failures = marker, failures + 1
                    retry_at = monotonic() + min(self._reload_seconds * 2**failures, LONGEST_RETRY_SECONDS)
            await asyncio.sleep(self._reload_seconds)

    @contextmanager
    def _lease(self) -> Iterator[Pipeline]:
        while True:
            generation = self._generation
            if generation is None:
                raise Unavailable(f"collection {self.name!r} is closed")
            if generation.enter():
                break
        try:
            yield generation.pipeline
        finally:
            generation.leave()

    def _run(self, queued: Sequence[_Queued]) -> list[ServedResult | ChamferError]:
        """One batch, in a worker thread."""
        started = perf_counter()
        with self._lease() as pipeline:
            results = pipeline.run([item.request for item in queued])
        outcomes: list[ServedResult | ChamferError] = []
        for item, result in zip(queued, results, strict=True):
            if isinstance(result, ChamferError):
                self._telemetry.outcome(result.code)
                outcomes.append(result)
            else:
                queue_ms = (started - item.submitted) * 1e3
                self._telemetry.searched(queue_ms, result.timings_ms, result.degraded)
                outcomes.append(ServedResult(result, queue_ms))
        return outcomes


def find_collection(collections: Mapping[str, ServedCollection], name: str) -> ServedCollection:
    """The collection of this name; NotFound lists those that are served."""
    served = collections.get(name)
    if served is None:
        raise NotFound(f"no collection {name[:100]!r}; this service has {', '.join(sorted(collections))}")
    return served


def _estimated_tokens(queued: _Queued) -> int:
    return 1 + len(queued.request.query) // CHARACTERS_PER_TOKEN


def _pointer(path: Path) -> bytes:
    """The content of the pointer file; empty if it cannot be read."""
    try:
        return (path / POINTER).read_bytes()
    except OSError:
        return b""
