"""Metrics in a separate Prometheus registry, and the log as JSON lines."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def json_logger(stream: TextIO | None = None) -> Any:
    """A structlog logger that writes one JSON object per line to `stream` (standard error if None)."""
    return structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


class Tally:
    """One labelled series of a histogram; `lock` belongs to the histogram."""

    __slots__ = ("bounds", "counts", "lock", "total")

    def __init__(self, bounds: Sequence[float], lock: threading.Lock) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.lock = lock

    def observe(self, value: float) -> None:
        """Counts one value."""
        bucket = bisect_left(self.bounds, value)
        with self.lock:
            self.counts[bucket] += 1
            self.total += value


class Tallies(Collector):
    """A histogram with labels, rendered by the client library.

    The library's own histogram takes 0.8 us per value. With one value per stage, that is a fifth of the time that the
    application spends on a request outside the search. This one takes 0.35 us (docs/experiments.md).
    """

    def __init__(self, name: str, description: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._description, self._labels, self._bounds = name, description, labels, tuple(bounds)
        self._series: dict[tuple[str, ...], Tally] = {}
        self._lock = threading.Lock()

    def labels(self, *values: str) -> Tally:
        """The series of these labels."""
        with self._lock:
            return self._series.setdefault(values, Tally(self._bounds, self._lock))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The series, as the registry renders them."""
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        with self._lock:
            series = [(labels, list(accumulate(tally.counts)), tally.total) for labels, tally in self._series.items()]
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        for labels, counts, total in series:
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), sum_value=total)
        yield family


class Telemetry:
    """All metrics of one service, and its log."""

    def __init__(self, log: Any | None = None) -> None:
        self.log = json_logger() if log is None else log
        self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "chamfer_http_requests", "HTTP responses", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Tallies("chamfer_http_request_seconds", "Wall time", ["route"], _SECONDS)
        self.stage_seconds = Tallies(
            "chamfer_stage_seconds",
            "Wall time of one stage of a search; the stage queue is the time spent in the queue",
            ["collection", "stage"],
            _SECONDS,
        )
        self.batch_size = Tallies("chamfer_batch_searches", "Searches per batch", ["collection"], _SIZES)
        self.rerank_batch = Tallies("chamfer_rerank_batch_pairs", "Pairs per batch", ["reranker"], _SIZES)
        for tallies in (self.request_seconds, self.stage_seconds, self.batch_size, self.rerank_batch):
            self.registry.register(tallies)
        self.queue_depth = Gauge("chamfer_queue_depth", "Queued searches", ["collection"], registry=self.registry)
        self.searches = Counter(
            "chamfer_searches",
            "Searches by outcome: ok or the code of the error",
            ["collection", "outcome"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "chamfer_degraded_stages",
            "Stages skipped or cut because of a deadline",
            ["collection", "stage"],
            registry=self.registry,
        )
        self.reloads = Counter(
            "chamfer_reloads",
            "Snapshots opened, by outcome: ok or failed",
            ["collection", "outcome"],
            registry=self.registry,
        )
        self.reload_failing = Gauge(
            "chamfer_reload_failing",
            "1 while the newest snapshot cannot be opened",
            ["collection"],
            registry=self.registry,
        )
        self.rerank_depth = Gauge("chamfer_rerank_queue", "Queued pairs", ["reranker"], registry=self.registry)
        self.reranked = Counter(
            "chamfer_reranked_pairs",
            "Pairs of rerank requests by outcome: ok or the code of the error",
            ["reranker", "outcome"],
            registry=self.registry,
        )
        self.selections = Counter(
            "chamfer_selection_records",
            "Records of the selection log by outcome: written, queue_full, not_written",
            ["outcome"],
            registry=self.registry,
        )
        self._requests: dict[tuple[str, str, int], tuple[Counter, Tally]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one HTTP response."""
        key = (method, route, status)
        children = self._requests.get(key)
        if children is None:  # looking up a child by labels takes longer than the rest of this function
            children = self._requests[key] = (
                self.requests.labels(method, route, str(status)),
                self.request_seconds.labels(route),
            )
        children[0].inc()
        children[1].observe(seconds)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class CollectionTelemetry:
    """The metrics of one collection; observes its queue."""

    def __init__(self, telemetry: Telemetry, collection: str) -> None:
        self.log = telemetry.log.bind(collection=collection)
        self._telemetry = telemetry
        self._collection = collection
        self._batch_size = telemetry.batch_size.labels(collection)
        self._stages: dict[str, Tally] = {}
        self._outcomes: dict[str, Counter] = {}
        self._failing = telemetry.reload_failing.labels(collection)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Reads the depth of the queue whenever metrics are rendered."""
        self._telemetry.queue_depth.labels(self._collection).set_function(depth)

    def batch_started(self, size: int) -> None:
        self._batch_size.observe(size)

    def dropped(self, count: int) -> None:
        self.outcome("client_left", count)

    def refused(self, count: int) -> None:
        self.outcome("overloaded", count)

    def outcome(self, outcome: str, count: int = 1) -> None:
        """Counts searches by outcome: "ok" or the code of an error."""
        child = self._outcomes.get(outcome)
        if child is None:
            child = self._outcomes[outcome] = self._telemetry.searches.labels(self._collection, outcome)
        child.inc(count)

    def searched(self, queue_ms: float, timings_ms: Mapping[str, float], degraded: tuple[str, ...]) -> None:
        """Counts one successful search."""
        self.outcome("ok")
        self._stage("queue").observe(queue_ms / 1e3)
        for stage, milliseconds in timings_ms.items():
            self._stage(stage).observe(milliseconds / 1e3)
        for stage in degraded:
            self._telemetry.degraded.labels(self._collection, stage).inc()

    def reloaded(self, succeeded: bool) -> None:
        """Counts one attempt to open a snapshot."""
        self._failing.set(0 if succeeded else 1)
        self._telemetry.reloads.labels(self._collection, "ok" if succeeded else "failed").inc()

    def _stage(self, stage: str) -> Tally:
        child = self._stages.get(stage)
        if child is None:
            child = self._stages[stage] = self._telemetry.stage_seconds.labels(self._collection, stage)
        return child


class RerankerTelemetry:
    """The metrics of one reranker's queue; observes it."""

    def __init__(self, telemetry: Telemetry, reranker: str) -> None:
        self.log = telemetry.log.bind(reranker=reranker)
        self._telemetry = telemetry
        self._reranker = reranker
        self._batch_size = telemetry.rerank_batch.labels(reranker)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Reads the depth of the queue whenever metrics are rendered."""
        self._telemetry.rerank_depth.labels(self._reranker).set_function(depth)

    def batch_started(self, size: int) -> None:
        self._batch_size.observe(size)

    def dropped(self, count: int) -> None:
        self.outcome("client_left", count)

    def refused(self, count: int) -> None:
        self.outcome("overloaded", count)

    def outcome(self, outcome: str, count: int = 1) -> None:
        """Counts pairs by outcome: "ok" or the code of an error."""
        self._telemetry.reranked.labels(self._reranker, outcome).inc(count)
