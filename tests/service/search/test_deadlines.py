"""Deadlines: which work fits, how durations are estimated, and that a skipped stage is tried again."""

from __future__ import annotations

import pytest
from support_service import ManualClock, pipeline

from chamfer.core.errors import DeadlineExceeded
from chamfer.service.search.deadlines import DurationEstimate, deadline_after, exceeded, fits
from chamfer.service.search.request import SearchRequest, SearchResult


def test_work_fits_without_a_deadline_and_if_it_ends_before_it() -> None:
    assert fits(None, now=1e9, expected_seconds=1e9)
    assert fits(10.0, now=8.0, expected_seconds=1.5)
    assert not fits(10.0, now=8.0, expected_seconds=2.0), "the deadline itself is too late"
    assert not fits(10.0, now=10.0)


@pytest.mark.parametrize(("timeout_ms", "deadline"), [(None, None), (0.0, None), (250.0, 100.25)])
def test_a_deadline_follows_from_the_timeout_and_zero_disables_it(
    timeout_ms: float | None, deadline: float | None
) -> None:
    assert deadline_after(timeout_ms, now=100.0) == deadline


def test_an_estimate_starts_at_the_first_measurement_and_follows_the_later_ones() -> None:
    estimate = DurationEstimate()
    assert estimate.seconds == 0.0
    estimate.observe(1.0)
    assert estimate.seconds == 1.0
    estimate.observe(2.0)
    assert estimate.seconds == pytest.approx(1.2)


def test_the_first_measurement_counts_in_full_even_after_the_work_was_skipped() -> None:
    estimate = DurationEstimate()
    estimate.decay()
    estimate.observe(1.0)
    assert estimate.seconds == 1.0


def test_an_estimate_that_keeps_work_from_being_tried_decays_until_the_work_fits() -> None:
    estimate, skipped = DurationEstimate(), 0
    estimate.observe(1.0)
    while not fits(0.5, now=0.0, expected_seconds=estimate.seconds):
        estimate.decay()
        skipped += 1
    assert skipped == 7


def test_the_error_names_the_setting_that_allows_more_time() -> None:
    error = exceeded("the search started")
    assert isinstance(error, DeadlineExceeded)
    assert error.detail == "the deadline passed before the search started; raise timeout_ms to allow more time"


def test_a_search_is_refused_at_its_deadline_and_not_before() -> None:
    clock = ManualClock()
    searching = pipeline(clock=clock)
    late, in_time = searching.run(
        [SearchRequest(query="fox", deadline=clock.now), SearchRequest(query="fox", deadline=clock.now + 60)]
    )
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(in_time, SearchResult)
