"""From a directory to a collection that answers: open, warm up, serve, exchange for a newer snapshot.

`PipelineLoader` is the one place that chooses classes. `ServedCollection` owns the queue and the pipeline behind
it: every batch runs on one snapshot from beginning to end, and a replaced one is closed when its last batch is over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, cast

from chamfer.core.errors import ChamferError, Incompatible, Internal, Unavailable
from chamfer.core.protocols import Encoder, Reranker
from chamfer.service.runtime.batching import CHARACTERS_PER_TOKEN, Batcher, BatchingConfig
from chamfer.service.runtime.telemetry import CollectionTelemetry
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan
from chamfer.service.search.request import SearchRequest, SearchResult

LoadPipeline = Callable[[Path], Pipeline]

POINTER = "CURRENT"
LONGEST_RETRY_SECONDS = 60.0


class PipelineLoader:
    """Opens collections with the models they need; a model is loaded once and shared by collections and snapshots."""

    def __init__(
        self,
        device: Any,
        *,
        rerankers: Sequence[str] = (),
        plans: Mapping[str, Plan] | None = None,
        load_reranker: Callable[[str], Reranker] | None = None,
        score_cache_bytes: int = 0,
    ) -> None:
        """`load_reranker` opens one by name (default: on `device`, without remote ones)."""
        self._device = device
        self._reranker_names = tuple(rerankers)
        self._load_reranker = load_reranker or self._load_plain_reranker
        self._score_cache_bytes = score_cache_bytes
        self._score_cache: Any = None
        self._plans = dict(plans or {})
        self._encoders: dict[str, Encoder] = {}
        self._rerankers: dict[str, Reranker] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Pipeline:
        """The newest snapshot at `path`, ready to be warmed up; raises NotFound, Corrupt or Incompatible."""
        from chamfer.indexing.collection.collection import Collection

        collection = Collection.open(path)
        try:
            encoder = self._encoder_of(collection.encoder_name, collection.encoder_fingerprint, path)
            return Pipeline(collection, encoder, self._rerankers_of(collection), plans=self._plans)
        except BaseException:
            collection.close()
            raise

    def _encoder_of(self, name: str | None, fingerprint: str | None, path: Path) -> Encoder | None:
        if name is None:
            return None
        from chamfer.models.registry import load_encoder

        with self._lock:
            if name not in self._encoders:
                self._encoders[name] = load_encoder(name, self._device)
            encoder = self._encoders[name]
        if encoder.spec.fingerprint != fingerprint:
            raise Incompatible(
                f"{path} was built with encoder {name} of fingerprint {str(fingerprint)[:16]}…, the one loaded "
                f"here has {encoder.spec.fingerprint[:16]}…; load the encoder it was built with, or build again"
            )
        return encoder

    def reranker(self, name: str) -> Reranker:
        """The reranker of this name, loaded once. All that judge pairs share one cache of scores."""
        with self._lock:
            if name not in self._rerankers:
                self._rerankers[name] = self._cached(self._load_reranker(name))
            return self._rerankers[name]

    def _rerankers_of(self, collection: Any) -> Mapping[str, Reranker]:
        """Those of the settings, and those whose scores the collection keeps (family `cur`)."""
        kept = (getattr(channel.family.config, "reranker", "") for channel in collection.channels.values())
        return {name: self.reranker(name) for name in dict.fromkeys([*self._reranker_names, *kept]) if name}

    def _cached(self, reranker: Any) -> Reranker:
        if not self._score_cache_bytes or not hasattr(reranker, "score_pairs"):
            return cast(Reranker, reranker)
        from chamfer.models.rerankers.score_cache import CachedReranker, ScoreCache

        if self._score_cache is None:
            self._score_cache = ScoreCache(self._score_cache_bytes)
        return CachedReranker(reranker, self._score_cache)

    def _load_plain_reranker(self, name: str) -> Reranker:
        from chamfer.models.registry import load_reranker

        return load_reranker(name, self._device)


@dataclass(frozen=True, slots=True)
class Answer:
    """A result, and how long its request waited for a worker, in milliseconds."""

    result: SearchResult
    queue_ms: float


@dataclass(frozen=True, slots=True)
class _Queued:
    request: SearchRequest
    since: float


class _Generation:
    """One pipeline and the batches that run on it."""

    def __init__(self, pipeline: Pipeline, marker: bytes) -> None:
        self.pipeline = pipeline
        self.marker = marker
        self._running = 0
        self._retired = False
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Counts a batch in; False if the generation is closed already."""
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
        """No new batch; closes now or when the last running batch is over."""
        with self._lock:
            idle = not self._retired and not self._running
            self._retired = True
        if idle:
            self.pipeline.close()


class ServedCollection:
    """A collection by name: its queue, its present pipeline, and the watch over its pointer file."""

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
        self._batcher: Batcher[_Queued, Answer] = Batcher(
            self._run, batching, tokens=_estimated_tokens, observer=telemetry
        )
        telemetry.watch_queue(lambda: self._batcher.waiting)

    async def start(self) -> None:
        """Starts the queue and, in the background, the first loading and the watch."""
        self._batcher.start()
        self._watch = asyncio.create_task(self._keep_current(), name=f"watch-{self.name}")

    async def close(self) -> None:
        """Ends the watch, answers what waits, closes the pipeline."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._batcher.close()
        if self._generation is not None:
            self._generation.retire()
            self._generation = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that answers now; Unavailable before the first is warm."""
        if self._generation is None:
            reason = (
                f"its loading failed ({self._failure.code}) and is tried again" if self._failure else "it is loading"
            )
            raise Unavailable(f"collection {self.name!r} is not ready: {reason}")
        return self._generation.pipeline

    def submit(self, requests: Sequence[SearchRequest]) -> list[asyncio.Future[Answer]]:
        """One future for each request; cancel it when the caller leaves. Raises Overloaded or Unavailable."""
        if self._generation is None:
            _ = self.pipeline
        now = perf_counter()
        return self._batcher.submit([_Queued(request, now) for request in requests])

    async def reload(self) -> bool:
        """Opens the newest snapshot if it is not the one that answers; True if the pipeline was exchanged.

        Raises Unavailable if it cannot be opened; the present one keeps answering.
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
            self._telemetry.log.info("snapshot serves", snapshot=pipeline.snapshot)
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
        unforeseen = None if isinstance(error, ChamferError) else error  # the others say all in a sentence
        self._telemetry.log.error(
            "snapshot cannot be opened",
            serving=serving,
            code=self._failure.code,
            detail=self._failure.detail,
            exc_info=unforeseen,
        )
        return Unavailable(
            f"the newest snapshot of {self.name!r} cannot be opened ({self._failure.code}); "
            f"{f'{serving} keeps answering' if serving else 'nothing answers yet'}; the log has more"
        )

    async def _keep_current(self) -> None:
        """Loads, then polls the pointer file; a snapshot that failed is tried again, less and less often."""
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

    def _run(self, queued: Sequence[_Queued]) -> list[Answer | ChamferError]:
        """One batch, in a worker thread."""
        started = perf_counter()
        with self._lease() as pipeline:
            results = pipeline.run([item.request for item in queued])
        answers: list[Answer | ChamferError] = []
        for item, result in zip(queued, results, strict=True):
            if isinstance(result, ChamferError):
                self._telemetry.outcome(result.code)
                answers.append(result)
            else:
                queue_ms = (started - item.since) * 1e3
                self._telemetry.searched(queue_ms, result.timings_ms, result.degraded)
                answers.append(Answer(result, queue_ms))
        return answers


def _estimated_tokens(queued: _Queued) -> int:
    return 1 + len(queued.request.query) // CHARACTERS_PER_TOKEN


def _pointer(path: Path) -> bytes:
    """What the pointer file holds; empty if it cannot be read."""
    try:
        return (path / POINTER).read_bytes()
    except OSError:
        return b""
