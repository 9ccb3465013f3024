"""What goes into the pipeline and what comes out: search requests and search results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chamfer.core.types import F32, Hit
from chamfer.indexing.collection.filters import Condition
from chamfer.service.search.plans import Plan
from chamfer.service.search.presets import DEFAULT_PRESET, ResolvedPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search.

    plan      the name of a plan, or a plan spelled out
    filter    the condition on metadata that every hit must fulfil
    explain   whether hits carry their rank and score in each stage
    deadline  a value of time.monotonic() in seconds (chamfer.service.search.deadlines)
    pool      how many candidates to return with their ranks and scores in every stage; 0 for none
    image     part of the query: cross-encoders that read images see it, channels search by the text alone
    """

    query: str
    k: int = 10
    plan: str | Plan = DEFAULT_PRESET
    filter: Condition | None = None
    explain: bool = False
    deadline: float | None = None
    pool: int = 0
    image: bytes | None = None


@dataclass(frozen=True, slots=True)
class RetrievedPool:
    """The first candidates of a search in rank order.

    `features` computes, on the thread that calls it, the rank and score of every stage by name
    (`chamfer.service.search.explain.pool_features`): f32 [n] aligned with doc_ids, NaN where a stage did not see the
    document.
    """

    doc_ids: tuple[str, ...]
    features: Callable[[], dict[str, F32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of one search.

    `timings_ms` is the wall time of each stage in milliseconds. A stage that several requests of a batch shared counts
    in full for each of them, since each waited for it. `degraded` names stages that were skipped or cut because of the
    deadline. `truncated_query` says that the query was longer than the encoder reads.
    """

    hits: tuple[Hit, ...]
    timings_ms: Mapping[str, float]
    snapshot: str
    degraded: tuple[str, ...]
    truncated_query: bool
    plan: ResolvedPlan
    pool: RetrievedPool | None = None
