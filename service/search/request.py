"""What goes into the pipeline and what comes out, and what the pipeline needs of a collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chamfer.core.types import F32, I64, Bool, Document, Hit
from chamfer.service.search.plans import DEFAULT_PRESET, Plan, ResolvedPlan


class ChannelView(Protocol):
    """A collection's channel, as the pipeline sees it."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Any: ...

    @property
    def retriever(self) -> Any: ...


class CollectionView(Protocol):
    """An opened collection (`chamfer.indexing.collection.collection.Collection`), as the pipeline sees it."""

    @property
    def snapshot(self) -> str: ...

    @property
    def channels(self) -> Mapping[str, ChannelView]: ...

    @property
    def n_rows(self) -> int: ...

    @property
    def encoder_name(self) -> str | None: ...

    @property
    def encoder_fingerprint(self) -> str | None: ...

    @property
    def bytes_per_document(self) -> float: ...

    def __len__(self) -> int: ...

    def bytes_by_part(self) -> dict[str, int]: ...

    def allowed(self, condition: Any, /) -> Bool | None: ...

    def documents(self, rows: I64, /) -> list[Document]: ...

    def doc_ids(self, rows: I64, /) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search. `filter` is a condition of chamfer.indexing.collection.filters; `deadline` is a time.monotonic()
    value in seconds.

    `image` belongs to the query: cross-encoders that read images see it beside the text, channels search by the text.
    `pool` asks for the first so many candidates with the ranks and scores of every stage; 0: none.
    """

    query: str
    k: int = 10
    plan: str | Plan = DEFAULT_PRESET
    filter: Any = None
    explain: bool = False
    deadline: float | None = None
    pool: int = 0
    image: bytes | None = None


@dataclass(frozen=True, slots=True)
class RetrievedPool:
    """The first candidates of a search in rank order. `features` computes, on whatever thread asks, every stage's rank
    and score by name (`chamfer.service.search.stages.pool_features`): f32 aligned with doc_ids, NaN where a stage did
    not see it."""

    doc_ids: tuple[str, ...]
    features: Callable[[], dict[str, F32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One answer.

    `timings_ms` is the wall time of each stage in milliseconds; a stage that several requests of a batch shared is
    counted in full for each of them, since each waited for it. `degraded` names stages that were left out because
    of the deadline. `truncated_query` says that the encoder did not read the query to its end.
    """

    hits: tuple[Hit, ...]
    timings_ms: Mapping[str, float]
    snapshot: str
    degraded: tuple[str, ...]
    truncated_query: bool
    plan: ResolvedPlan
    pool: RetrievedPool | None = None
