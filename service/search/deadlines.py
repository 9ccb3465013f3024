"""Deadlines: how long work is expected to take, and whether it still fits.

Every decision to start, skip or cut work for lack of time is made here: the stages of a search (`stages.StageRunner`),
rounds of reranking (`pair_scoring.score_in_time`), rounds of retrieval by a cross-encoder (`cross_encoder_stages`), and
the wait of a rerank request for its queue (`chamfer.service.http.client_disconnect`).

A deadline is a value of a monotonic clock in seconds; None means that there is no deadline.
"""

from __future__ import annotations

from collections.abc import Callable

from chamfer.core.errors import DeadlineExceeded

Clock = Callable[[], float]

SMOOTHING = 0.2  # the share of a new measurement in the moving average
DECAY = 0.9  # the factor by which an estimate shrinks each time that it kept work from being tried


def deadline_after(timeout_ms: float | None, now: float) -> float | None:
    """The deadline of a request that arrived at `now`; None where the timeout is None or 0."""
    return now + timeout_ms / 1e3 if timeout_ms else None


def fits(deadline: float | None, now: float, expected_seconds: float = 0.0) -> bool:
    """Whether work that starts at `now` and takes `expected_seconds` is expected to end before the deadline."""
    return deadline is None or now + expected_seconds < deadline


def exceeded(before: str) -> DeadlineExceeded:
    """The error of a request whose deadline passed before something: "the search started", for example."""
    return DeadlineExceeded(f"the deadline passed before {before}; raise timeout_ms to allow more time")


class DurationEstimate:
    """The expected duration of one kind of work in seconds: a moving average of measured durations, 0 at first."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Adds a measured duration to the average."""
        self.seconds += (SMOOTHING if self.seconds else 1.0) * (seconds - self.seconds)

    def decay(self) -> None:
        """Lowers an estimate that kept work from being tried, so that it is tried again after a while."""
        self.seconds *= DECAY
