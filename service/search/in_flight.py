"""A search on its way through the stages, and what each stage adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chamfer.core.errors import ChamferError, Internal
from chamfer.core.types import F32, I64, Bool, Candidates, Encoding, Query, Vectors
from chamfer.service.search.fusion import Fused
from chamfer.service.search.plans import Cur, Rerank
from chamfer.service.search.presets import ResolvedPlan
from chamfer.service.search.request import SearchRequest, SearchResult


@dataclass(frozen=True, slots=True)
class StageScores:
    """The outcome of one stage after retrieval: the rows it scored, their scores, and the ranking that followed.

    rows i64 [n], scores f32 [n]. estimates f32 [n] are the scores that stage `cur` predicted before it computed the
    exact ones, NaN where it predicted none.
    """

    stage: str
    name: str
    rows: I64
    scores: F32
    ranked: Candidates
    estimates: F32 | None = None


@dataclass(frozen=True, slots=True)
class ExactScores:
    """Scores of a reranker by row, computed by a stage before reranking."""

    model: str
    scores: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What feedback did to one channel's query.

    `rows` are the feedback documents, best first. `vectors` holds one query in the channel's stored form; None where
    the guard skipped the channel or there was no feedback document. `details` are shown in explanations.
    """

    rows: I64
    vectors: Vectors | None
    details: Mapping[str, Any]


@dataclass(slots=True)
class InFlightSearch:
    """A request being processed. All its Candidates have Q = 1.

    `runs` and `fused` belong to the first round of retrieval, `expansions`, `feedback_runs` and `feedback_fused` to the
    round after feedback. A round of a single run has no `fused`: the run is its ranking.
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
    feedback_runs: dict[str, Candidates] = field(default_factory=dict)
    feedback_fused: Fused | None = None
    ranked: Candidates | None = None
    stage_scores: list[StageScores] = field(default_factory=list)
    exact_scores: ExactScores | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    result: SearchResult | ChamferError | None = None

    @property
    def filter_key(self) -> str:
        """Equal for equal filters."""
        # The text form, because the conditions year = 1 and year = true are equal as values.
        return "" if self.request.filter is None else repr(self.request.filter)

    @property
    def current(self) -> Candidates:
        """The ranking after the last stage that ran."""
        if self.ranked is None:
            raise Internal("a stage ran before retrieval")
        return self.ranked

    @property
    def runs_after_feedback(self) -> dict[str, Candidates]:
        """The runs that make the ranking after feedback, in the plan's order: see plans.Feedback.interpolate."""
        plan = self.plan.plan
        second_round_only = plan.feedback is not None and plan.feedback.interpolate == "before"
        first_runs = {} if second_round_only else self.runs
        runs = {name: self.feedback_runs.get(name, first_runs.get(name)) for name in plan.active}
        return {name: run for name, run in runs.items() if run is not None}

    @property
    def cur_plan(self) -> Cur:
        """The cur stage of the plan; Internal without one."""
        if self.plan.plan.cur is None:
            raise Internal("a search without cur in its plan reached the cur stage")
        return self.plan.plan.cur

    @property
    def rerank_plan(self) -> Rerank:
        """The rerank stage of the plan; Internal without one."""
        if self.plan.plan.rerank is None:
            raise Internal("a search without rerank in its plan reached the rerank stage")
        return self.plan.plan.rerank

    def add_scores(self, scores: StageScores) -> None:
        """Records the scores of a stage and adopts its ranking."""
        self.stage_scores.append(scores)
        self.ranked = scores.ranked
