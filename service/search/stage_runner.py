"""Runs a stage over groups of searches: measures it, isolates failures and skips it where the deadline is too near."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from time import monotonic, perf_counter

from chamfer.core.errors import as_chamfer_error
from chamfer.service.search.deadlines import Clock, DurationEstimate, fits
from chamfer.service.search.in_flight import InFlightSearch


class StageRunner:
    """Runs stages, and remembers how long each took."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self.clock = clock
        self._estimates: defaultdict[str, DurationEstimate] = defaultdict(DurationEstimate)

    def attempt(self, stage: str, group: list[InFlightSearch], work: Callable[[list[InFlightSearch]], None]) -> None:
        """Runs `work` on the group; if that fails, on each search alone, so that only the faulty ones fail."""
        if not group:
            return
        started = perf_counter()
        try:
            work(group)
        except Exception as error:
            if len(group) == 1:
                group[0].result = as_chamfer_error(error, f"the stage {stage}")
            else:
                for search in group:
                    self.attempt(stage, [search], work)
            return
        seconds = perf_counter() - started
        self._estimates[stage].observe(seconds)
        for search in group:
            search.timings_ms[stage] = search.timings_ms.get(stage, 0.0) + seconds * 1e3

    def in_time(
        self, stage: str, searches: Iterable[InFlightSearch], *, needed: Callable[[InFlightSearch], bool]
    ) -> list[InFlightSearch]:
        """The searches for which the stage is expected to end before their deadline; the others record it as degraded.

        Where `needed` says that there is no result without the stage, it is tried as long as any time is left.
        """
        kept = []
        now = self.clock()
        for search in searches:
            expected_seconds = 0.0 if needed(search) else self._estimates[stage].seconds
            if fits(search.request.deadline, now, expected_seconds):
                kept.append(search)
            else:
                search.degraded.append(stage)
                self._estimates[stage].decay()
        return kept


def grouped(
    searches: Iterable[InFlightSearch], key: Callable[[InFlightSearch], Hashable]
) -> list[list[InFlightSearch]]:
    """The searches in groups of equal key, in order of first appearance."""
    groups: dict[Hashable, list[InFlightSearch]] = {}
    for search in searches:
        groups.setdefault(key(search), []).append(search)
    return list(groups.values())
