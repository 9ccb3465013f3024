"""A request on its way through the stages, and how a stage is run over a group of requests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError, Internal
from chamfer.core.types import F32, I64, Bool, Candidates, Encoding, Query, Vectors
from chamfer.service.search.fusion import ChannelShare, Fused
from chamfer.service.search.plans import ResolvedPlan
from chamfer.service.search.request import SearchRequest, SearchResult

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one stage after retrieval said: the rows it scored, its scores, and the ranking that followed."""

    stage: str
    name: str
    rows: I64
    scores: F32
    ranked: Candidates
    estimates: F32 | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Exact scores of a reranker by row, from a stage before reranking."""

    model: str
    scores: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What feedback did to one channel's query.

    `rows` are the feedback documents, best first. `vectors` holds one query in the channel's stored form, None where
    the guard skipped the channel or there was nothing to learn from. `facts` are shown in explanations.
    """

    rows: I64
    vectors: Vectors | None
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Search:
    """A request in flight. All its Candidates have Q = 1.

    `runs` and `fused` are of the first round, `expansions`, `runs_again` and `fused_again` of the one after feedback.
    A round that fuses nothing has no `fused`: its one run is its ranking.
    """

    request: SearchRequest
    plan: ResolvedPlan
    query: Query
    allowed: Bool | None = None
    encoding: Encoding | None = None
    encoding_row: int = 0
    runs: dict[str, Candidates] = field(default_factory=dict)
    fused: Fused | None = None
    expansions: dict[str, Expansion] = field(default_factory=dict)
    runs_again: dict[str, Candidates] = field(default_factory=dict)
    fused_again: Fused | None = None
    ranked: Candidates | None = None
    judgements: list[Judgement] = field(default_factory=list)
    known: Known | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    result: SearchResult | ChamferError | None = None

    @property
    def filter_key(self) -> str:
        """Equal for equal filters."""
        # The text form, since by equality the conditions year = 1 and year = true would be one.
        return "" if self.request.filter is None else repr(self.request.filter)

    @property
    def current(self) -> Candidates:
        """The ranking after the last stage that ran."""
        if self.ranked is None:
            raise Internal("a stage ran before retrieval")
        return self.ranked

    def judge(self, judgement: Judgement) -> None:
        """Takes over the ranking of a stage."""
        self.judgements.append(judgement)
        self.ranked = judgement.ranked


class StageRunner:
    """Runs stages over groups: times them, isolates failures, and knows what still fits before a deadline."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self.clock = clock
        self._expected_seconds: dict[str, float] = {}

    def attempt(self, stage: str, group: list[Search], work: Callable[[list[Search]], None]) -> None:
        """Runs `work` on the group; if that fails, on each request alone, so that only the faulty ones fail."""
        if not group:
            return
        started = perf_counter()
        try:
            work(group)
        except Exception as error:
            if len(group) == 1:
                group[0].result = _as_chamfer_error(stage, error)
            else:
                for search in group:
                    self.attempt(stage, [search], work)
            return
        seconds = perf_counter() - started
        expected = self._expected_seconds.setdefault(stage, seconds)
        self._expected_seconds[stage] = expected + 0.2 * (seconds - expected)
        for search in group:
            search.timings_ms[stage] = search.timings_ms.get(stage, 0.0) + seconds * 1e3

    def in_time(self, stage: str, searches: Iterable[Search], *, needed: Callable[[Search], bool]) -> list[Search]:
        """The searches for which the stage is expected to end before their deadline; others note it as left out.

        Where `needed` says that there is no answer without the stage, it is tried as long as any time is left.
        """
        kept = []
        now = self.clock()
        for search in searches:
            deadline = search.request.deadline
            expected = 0.0 if needed(search) else self._expected_seconds.get(stage, 0.0)
            if deadline is None or now + expected < deadline:
                kept.append(search)
            else:
                search.degraded.append(stage)
                # An estimate that was once too high shrinks until the stage is tried again.
                self._expected_seconds[stage] = 0.9 * self._expected_seconds.get(stage, 0.0)
        return kept


def grouped(searches: Iterable[Search], key: Callable[[Search], Hashable]) -> list[list[Search]]:
    """The searches in groups of equal key, in order of first appearance."""
    groups: dict[Hashable, list[Search]] = {}
    for search in searches:
        groups.setdefault(key(search), []).append(search)
    return list(groups.values())


def explanation(search: Search, row: int, names: Mapping[int, str]) -> dict[str, Any]:
    """The stages that a hit went through, in order: its rank and score in each and the arithmetic of the fusion.

    A stage that did not see the document has rank and score None. `names` gives the doc_ids of feedback documents.
    """
    stages = _round(search, row, search.runs, search.fused, "fuse")
    stages += [_feedback(name, search.expansions[name], row, names) for name in _expanded(search)]
    if search.runs_again:
        stages += _round(search, row, second_runs(search), search.fused_again, "fuse_again")
    for judgement in search.judgements:
        stages.append(_judgement(judgement, row))
    return {"stages": stages}


def _expanded(search: Search) -> list[str]:
    feedback = search.plan.plan.feedback
    return [name for name in (feedback.channels if feedback else ()) if name in search.expansions]


def pool_features(search: Search, rows: I64) -> dict[str, F32]:
    """What `explanation` says of rows i64 [n], as columns f32 [n]: rank and score in CHANNEL, in CHANNEL.again (after
    feedback) and in each STAGE. NaN where it did not see the row; a column that would hold nothing else is left out.
    """
    columns: dict[str, F32] = {}
    for name, ranks, scores in _seen(search, rows):
        for column, values in ((f"{name}.rank", ranks), (f"{name}.score", scores)):
            seen = ~np.isnan(values)
            if seen.any():
                out = columns.setdefault(column, np.full(len(rows), np.nan, dtype=np.float32))
                out[seen] = values[seen]
    return columns


def _seen(search: Search, rows: I64) -> Iterator[tuple[str, F32, F32]]:
    """(name, ranks f32 [n], scores f32 [n]) of every stage, in order; NaN where it did not see the row."""
    nothing = np.full(len(rows), np.nan, dtype=np.float32)
    yield from _seen_in_round(search, rows, search.runs, search.fused, "fuse")
    for name in _expanded(search):
        yield "feedback", _at(_places(search.expansions[name].rows, rows)), nothing
    if search.runs_again:
        yield from _seen_in_round(search, rows, second_runs(search), search.fused_again, "fuse_again")
    for judgement in search.judgements:
        ranks = _at(_places(judgement.ranked.rows[0], rows))
        yield judgement.stage, ranks, _at(_places(judgement.rows, rows), judgement.scores)


def _seen_in_round(
    search: Search, rows: I64, runs: Mapping[str, Candidates], fused: Fused | None, fusing: str
) -> Iterator[tuple[str, F32, F32]]:
    named = {n: f"{n}.again" if run is search.runs_again.get(n) else n for n, run in runs.items()}
    if fused is None:
        for name, run in runs.items():
            places = _places(run.rows[0], rows)
            yield named[name], _at(places), _at(places, run.scores[0])
        return
    places = _places(fused.candidates.rows[0], rows)
    for name, share in fused.channels.items():
        ranks = _at(places, share.ranks[0].astype(np.float32))
        found = ranks > 0
        yield named[name], np.where(found, ranks, np.nan), np.where(found, _at(places, share.scores[0]), np.nan)
    yield fusing, _at(places), _at(places, fused.candidates.scores[0])


def _places(order: I64, rows: I64) -> I64:
    """The first place of each of rows i64 [n] in `order` i64 [K], -1 where it does not stand there."""
    if not len(order):
        return np.full(len(rows), -1, dtype=np.int64)
    sorter = np.argsort(order, kind="stable")
    near = sorter[np.minimum(np.searchsorted(order, rows, sorter=sorter), len(order) - 1)]
    return np.where(order[near] == rows, near, -1)


def _at(places: I64, values: F32 | None = None) -> F32:
    """values f32 [K] at places i64 [n], without values their ranks from 1; NaN at -1."""
    found = places + 1.0 if values is None else values[places]
    return np.where(places >= 0, found, np.nan).astype(np.float32)


def _judgement(judgement: Judgement, row: int) -> dict[str, Any]:
    """A stage's word on a row; where it guessed before it scored, the estimate stands beside the exact score."""
    scored = _position(judgement.rows, row)
    said: dict[str, Any] = {
        "stage": judgement.stage,
        "name": judgement.name,
        "rank": _position(judgement.ranked.rows[0], row, from_one=True),
        "score": None if scored is None else float(judgement.scores[scored]),
    }
    if judgement.estimates is not None:
        estimate = None if scored is None else float(judgement.estimates[scored])
        said["estimate"] = None if estimate is None or estimate != estimate else estimate
    return said


def second_runs(search: Search) -> dict[str, Candidates]:
    """What makes the ranking after feedback, in the plan's order: see plans.Feedback.interpolate."""
    plan = search.plan.plan
    alone = plan.feedback is not None and plan.feedback.interpolate == "before"
    first = {} if alone else search.runs
    return {name: run for name in plan.active if (run := search.runs_again.get(name, first.get(name))) is not None}


def _feedback(name: str, expansion: Expansion, row: int, names: Mapping[int, str]) -> dict[str, Any]:
    """What feedback did for a channel; rank is the hit's among the documents that were learnt from."""
    return {
        "stage": "feedback",
        "name": name,
        "rank": _position(expansion.rows, row, from_one=True),
        "score": None,
        "skipped": expansion.vectors is None,
        **expansion.facts,
        "documents": [names[each] for each in expansion.rows.tolist()],
    }


def _round(
    search: Search, row: int, runs: Mapping[str, Candidates], fused: Fused | None, fusing: str
) -> list[dict[str, Any]]:
    retrieval = {
        name: "retrieve_again" if run is search.runs_again.get(name) else "retrieve" for name, run in runs.items()
    }
    if fused is None:  # one channel, nothing to fuse
        [(name, run)] = runs.items()
        told: dict[str, Any] = {"stage": retrieval[name], "name": name, "rank": None, "score": None}
        if (place := _position(run.rows[0], row)) is not None:
            told |= {"rank": place + 1, "score": float(run.scores[0, place])}
        return [told]
    place = _position(fused.candidates.rows[0], row)
    stages = [_share(retrieval[name], name, share, place) for name, share in fused.channels.items()]
    fusion: dict[str, Any] = {"stage": fusing, "name": search.plan.plan.fusion.method, "rank": None, "score": None}
    if place is not None:
        fusion |= {"rank": place + 1, "score": float(fused.candidates.scores[0, place])}
    return [*stages, fusion]


def _share(stage: str, name: str, share: ChannelShare, place: int | None) -> dict[str, Any]:
    """What a channel gave to the fused candidate at `place`; one that this round did not find has no arithmetic."""
    told: dict[str, Any] = {"stage": stage, "name": name, "rank": None, "score": None}
    if place is not None:
        rank = int(share.ranks[0, place])
        told |= {"rank": rank or None, "score": float(share.scores[0, place]) if rank else None}
        told |= {"value": float(share.values[0, place]), "weight": share.weight, "share": float(share.shares[0, place])}
    return told


def _position(rows: I64, row: int, *, from_one: bool = False) -> int | None:
    found = (rows == row).nonzero()[0]
    return int(found[0]) + from_one if len(found) else None


def _as_chamfer_error(stage: str, error: Exception) -> ChamferError:
    if isinstance(error, ChamferError):
        return error
    failure = Internal(f"the stage {stage} failed")
    failure.__cause__ = error
    return failure
