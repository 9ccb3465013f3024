"""Metrics are in a separate registry; the log is one JSON object per line."""

from __future__ import annotations

import io
import json

from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import CapturingLogger

from chamfer.service.runtime.telemetry import CollectionTelemetry, Tallies, Telemetry, json_logger


def test_two_services_in_one_process_do_not_share_metrics() -> None:
    first, second = Telemetry(CapturingLogger()), Telemetry(CapturingLogger())
    first.answered("GET", "/healthz", 200, 0.001)
    assert b'route="/healthz"' in first.render()
    assert b'route="/healthz"' not in second.render()
    assert REGISTRY.get_sample_value("chamfer_http_requests_total") is None


def test_metrics_can_be_parsed_and_the_queue_depth_is_read_when_rendered() -> None:
    telemetry = Telemetry(json_logger(io.StringIO()))
    fables = CollectionTelemetry(telemetry, "fables")
    depth = 3
    fables.watch_queue(lambda: depth)
    fables.searched(1.0, {"encode": 4.0}, ("rerank:length",))
    depth = 5
    families = {f.name: f for f in text_string_to_metric_families(telemetry.render().decode())}
    assert [sample.value for sample in families["chamfer_queue_depth"].samples] == [5.0]
    totals = {s.labels["stage"]: s.value for s in families["chamfer_stage_seconds"].samples if s.name.endswith("_sum")}
    assert totals == {"queue": 0.001, "encode": 0.004}
    assert families["chamfer_degraded_stages"].samples[0].labels["stage"] == "rerank:length"


def test_the_log_is_json_with_the_error_in_it() -> None:
    stream = io.StringIO()
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        json_logger(stream).error("failed", request_id="r-1", exc_info=error)
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["request_id"], entry["level"]) == ("failed", "r-1", "error")
    assert "what went wrong" in entry["exception"]


def test_histograms_agree_with_the_client_librarys_own() -> None:
    bounds = (0.001, 0.01, 0.1)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("seconds", "Wall time", ["stage"], bounds)
    ours.register(tallies)
    histogram = Histogram("seconds", "Wall time", ["stage"], registry=theirs, buckets=bounds)
    for stage, value in (("a", 0.0), ("a", 0.001), ("a", 0.002), ("b", 0.1), ("b", 7.0), ("a", -1.0)):
        tallies.labels(stage).observe(value)
        histogram.labels(stage).observe(value)

    def rendered(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert rendered(ours) == rendered(theirs)
    assert len(rendered(ours)) > 12
