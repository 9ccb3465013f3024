"""Bodies on the wire: requests are validated here, answers are built here, and both are described for OpenAPI.

Answers are plain dictionaries on their way to JSON; the models named `...Answer` describe them and are used in
documentation and tests only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Hit
from chamfer.indexing.collection.filters import Condition, parse_condition
from chamfer.service.http.errors import FieldError, InvalidBody
from chamfer.service.http.rerank_schemas import RerankBody, TeiBody
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import DEFAULT_PRESET, Plan
from chamfer.service.search.request import SearchRequest, SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask. Each message about a limit names its setting (`limits.NAME`)."""

    max_body_bytes: int = 1 << 20
    max_k: int = 1000
    max_query_characters: int = 10_000
    max_batch_searches: int = 128
    max_filter_depth: int = 16
    max_filter_parts: int = 1000
    max_timeout_ms: float = 600_000.0


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _plan_tag(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<plan>"


PlanChoice = Annotated[
    Annotated[Annotated[str, Field(min_length=1, max_length=200)], Tag("<name>")] | Annotated[Plan, Tag("<plan>")],
    Discriminator(_plan_tag),
]


class SearchBody(_Wire):
    """One search."""

    query: Annotated[str, Field(min_length=1, description="The question, as text.")]
    k: Annotated[int, Field(ge=1, description="How many hits are wanted.")] = 10
    plan: Annotated[PlanChoice, Field(description="The name of a plan of the collection, or a plan spelled out.")] = (
        DEFAULT_PRESET
    )
    filter: Annotated[
        dict[str, Any] | None, Field(description="A condition on metadata; applied before every channel is searched.")
    ] = None
    explain: Annotated[bool, Field(description="Whether hits tell their rank and score in each stage.")] = False
    timeout_ms: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Stages that do not fit into this time are left out."),
    ] = None
    image: Annotated[
        str | None,
        Field(description="Of the query, as a data URI or a URL of an allowed host; for rerankers that read images."),
    ] = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "Why did the fox lose his tail?"},
                {
                    "query": "Why did the fox lose his tail?",
                    "k": 5,
                    "plan": "best",
                    "filter": {
                        "and": [{"field": "year", "gte": 1800, "lt": 1900}, {"field": "lang", "in": ["en", "de"]}]
                    },
                    "explain": True,
                    "timeout_ms": 200,
                },
                {
                    "query": "Why did the fox lose his tail?",
                    "plan": {
                        "channels": {"dense": {"depth": 200, "weight": 1.0}, "lexical": {"depth": 200, "weight": 0.5}},
                        "fusion": {"method": "rrf", "k": 60},
                        "rescore": {"channel": "multivector", "depth": 50},
                    },
                },
                {
                    "query": "Why did the fox lose his tail?",
                    "explain": True,
                    "plan": {
                        "channels": {"dense": {"weight": 0.3}, "lexical": {"weight": 0.7}},
                        "feedback": {
                            "interpolate": "both",
                            "depth": 3,
                            "channels": {"dense": {"alpha": 0.4, "beta": 0.6}, "lexical": {"method": "rm3"}},
                            "guard": {"low": 3.0, "high": 5.0},
                        },
                    },
                },
            ]
        }
    )


class BatchBody(_Wire):
    """Several searches in one request; each has its own answer or error."""

    searches: Annotated[list[Any], Field(min_length=1, description="Each as the body of a single search.")]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"searches": [{"query": "fox without a tail"}, {"query": "crow", "k": 3}]}]}
    )


class HitAnswer(_Wire):
    doc_id: str
    rank: Annotated[int, Field(ge=1)]
    score: float
    title: str
    text: str
    metadata: dict[str, Any]
    explanation: Annotated[
        dict[str, Any] | None, Field(description="The stages in order, each with rank and score; with explain only.")
    ] = None


class PlanAnswer(Plan):
    name: Annotated[str, Field(description="The name under which the plan was asked, or custom.")]


class SearchAnswer(_Wire):
    """The hits, and how they came about."""

    request_id: str
    collection: str
    snapshot: Annotated[str, Field(description="The snapshot that answered.")]
    plan: PlanAnswer
    hits: list[HitAnswer]
    timings_ms: Annotated[
        dict[str, float],
        Field(description="Wall time of each stage; queue is the wait for a worker, total all but the network."),
    ]
    degraded: Annotated[list[str], Field(description="Stages left out because of timeout_ms.")]
    truncated_query: Annotated[bool, Field(description="Whether the encoder could not read the query to its end.")]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Field(description="Stable and machine-readable.")]
    request_id: str
    errors: Annotated[
        list[dict[str, str]] | None, Field(description="Faults in the body, each with a JSON pointer.")
    ] = None
    retry_after_seconds: int | None = None


class FailedItem(_Wire):
    error: Problem


class BatchAnswer(_Wire):
    """Answers in the order of the searches."""

    request_id: str
    results: list[SearchAnswer | FailedItem]
    failed: Annotated[int, Field(description="How many of them are errors.")]


class Click(_Wire):
    doc_id: Annotated[str, Field(min_length=1)]
    rank: Annotated[int, Field(ge=1, description="The rank at which it was shown.")]


class ClicksBody(_Wire):
    """Which hits of a recorded search were chosen."""

    request_id: Annotated[
        str, Field(min_length=1, max_length=160, description="Of the search; for search N of a batch, request_id/N.")
    ]
    clicks: Annotated[list[Click], Field(min_length=1, max_length=1000)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request_id": "4f2a", "clicks": [{"doc_id": "fox-1", "rank": 2}]}]}
    )


class ClicksAnswer(_Wire):
    request_id: str
    accepted: Annotated[int, Field(description="Clicks that were recorded; 0 where the log had no room.")]


def component_schemas() -> dict[str, Any]:
    """The JSON schemas of all bodies, for OpenAPI's components."""
    models = (SearchBody, BatchBody, SearchAnswer, BatchAnswer, Problem, ClicksBody, ClicksAnswer, RerankBody, TeiBody)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = schemas["$defs"]
    return found


_SEARCH = TypeAdapter(SearchBody)
_BATCH = TypeAdapter(BatchBody)


def read_search(body: bytes) -> SearchBody:
    """The body of a search; InvalidBody with a JSON pointer for each fault."""
    try:
        return _SEARCH.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def read_batch(body: bytes, limits: Limits) -> list[Any]:
    """The raw searches of a batch, each to be read by `read_item`."""
    try:
        searches = _BATCH.validate_json(body).searches
    except ValidationError as error:
        raise InvalidBody.of(error) from None
    if len(searches) > limits.max_batch_searches:
        raise _beyond("/searches", f"{len(searches)} searches", "max_batch_searches", limits.max_batch_searches)
    return searches


def read_clicks(body: bytes) -> ClicksBody:
    """The body of a click report; InvalidBody with a JSON pointer for each fault."""
    try:
        return ClicksBody.model_validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def read_item(item: Any) -> SearchBody:
    """One search of a batch."""
    try:
        return _SEARCH.validate_python(item)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def search_request(body: SearchBody, limits: Limits, now: float) -> SearchRequest:
    """The request for the pipeline; `now` is the time.monotonic() at which it came in. Raises InvalidBody."""
    if body.k > limits.max_k:
        raise _beyond("/k", f"k = {body.k}", "max_k", limits.max_k)
    if len(body.query) > limits.max_query_characters:
        raise _beyond("/query", f"{len(body.query)} characters", "max_query_characters", limits.max_query_characters)
    if not body.query.strip():
        raise InvalidBody([FieldError("/query", "the query holds nothing but white space")])
    if body.timeout_ms is not None and body.timeout_ms > limits.max_timeout_ms:
        raise _beyond("/timeout_ms", f"{body.timeout_ms} ms", "max_timeout_ms", limits.max_timeout_ms)
    return SearchRequest(
        query=body.query,
        k=body.k,
        plan=body.plan,
        filter=None if body.filter is None else _condition(body.filter, limits),
        explain=body.explain,
        deadline=None if body.timeout_ms is None else now + body.timeout_ms / 1e3,
    )


def _condition(value: dict[str, Any], limits: Limits) -> Condition:
    _check_size(value, limits)
    try:
        return parse_condition(value)
    except InvalidInput as error:
        # Its messages begin with the place, as a pointer from the body's root.
        place, _, rest = error.detail.partition(" ")
        fault = FieldError(place.rstrip(":"), rest) if place.startswith("/") else FieldError("/filter", error.detail)
        raise InvalidBody([fault]) from None


def _check_size(value: Any, limits: Limits) -> None:
    """Refuses filters that are deep or large before anything walks them recursively."""
    level, parts = [value], 0
    for _ in range(limits.max_filter_depth * 2 + 1):  # each operator is an object around a list
        parts += len(level)
        if parts > limits.max_filter_parts:
            raise _beyond(
                "/filter", f"more than {limits.max_filter_parts} parts", "max_filter_parts", limits.max_filter_parts
            )
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise InvalidBody([FieldError("/filter", "a number is not finite")])
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise _beyond("/filter", f"more than {limits.max_filter_depth} levels", "max_filter_depth", limits.max_filter_depth)


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _beyond(pointer: str, found: str, setting: str, limit: float) -> InvalidBody:
    return InvalidBody([FieldError(pointer, f"found {found}, the limit is {limit} (limits.{setting})")])


def search_answer(
    result: SearchResult, *, collection: str, request_id: str, queue_ms: float, total_ms: float
) -> dict[str, Any]:
    """The answer to one search, ready for JSON."""
    timings = {"queue": queue_ms, **result.timings_ms, "total": total_ms}
    return {
        "request_id": request_id,
        "collection": collection,
        "snapshot": result.snapshot,
        "plan": {"name": result.plan.name, **result.plan.plan.as_json},
        "hits": [_hit(hit) for hit in result.hits],
        "timings_ms": {stage: round(milliseconds, 3) for stage, milliseconds in timings.items()},
        "degraded": result.degraded,
        "truncated_query": result.truncated_query,
    }


def _hit(hit: Hit) -> dict[str, Any]:
    document = hit.document
    body = {
        "doc_id": hit.doc_id,
        "rank": hit.rank,
        "score": hit.score,
        "title": document.title,
        "text": document.text,
        "metadata": document.metadata,
    }
    if hit.explanation is not None:
        body["explanation"] = hit.explanation
    return body


def collection_answer(name: str, pipeline: Pipeline, examples: tuple[str, ...]) -> dict[str, Any]:
    """What a collection is made of, ready for JSON."""
    collection = pipeline.collection
    return {
        "name": name,
        "ready": True,
        "snapshot": collection.snapshot,
        "documents": len(collection),
        "rows": collection.n_rows,
        "encoder": {"name": collection.encoder_name, "fingerprint": collection.encoder_fingerprint},
        "rerankers": list(pipeline.features.rerankers),
        "channels": {
            channel.name: {
                "family": channel.family.name,
                "kind": channel.family.kind,
                "searchable": channel.name in pipeline.features.channels,
                "config": _plain(channel.family.config),
            }
            for channel in collection.channels.values()
        },
        "bytes": collection.bytes_by_part(),
        "bytes_per_document": collection.bytes_per_document,
        "plans": {name: resolved.plan.as_json for name, resolved in pipeline.plans.items()},
        "default_plan": DEFAULT_PRESET,
        "examples": examples,
    }


def _plain(config: Any) -> Any:
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
