"""Bodies of responses about searches and collections.

The functions build plain dictionaries for JSON. The models named `...Answer` describe them in the OpenAPI document and
in tests only.
"""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field

from chamfer.core.types import Hit
from chamfer.service.http.search_requests import WireModel
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan
from chamfer.service.search.presets import DEFAULT_PRESET
from chamfer.service.search.request import SearchResult


class HitAnswer(WireModel):
    doc_id: str
    rank: Annotated[int, Field(ge=1)]
    score: float
    title: str
    text: str
    metadata: dict[str, Any]
    explanation: Annotated[
        dict[str, Any] | None, Field(description="The stages in order, each with rank and score; only with explain.")
    ] = None


class PlanAnswer(Plan):
    name: Annotated[str, Field(description="The name under which the plan was requested, or custom.")]


class SearchAnswer(WireModel):
    """The hits, and how they were obtained."""

    request_id: str
    collection: str
    snapshot: Annotated[str, Field(description="The snapshot that was searched.")]
    plan: PlanAnswer
    hits: list[HitAnswer]
    timings_ms: Annotated[
        dict[str, float],
        Field(
            description="Wall time of each stage; queue is the time in the queue, total everything except the network."
        ),
    ]
    degraded: Annotated[list[str], Field(description="Stages skipped or cut because of timeout_ms.")]
    truncated_query: Annotated[bool, Field(description="Whether the query was longer than the encoder reads.")]


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
        list[dict[str, str]] | None, Field(description="Errors in the body, each with a JSON pointer.")
    ] = None
    retry_after_seconds: int | None = None


class FailedItem(WireModel):
    error: Problem


class BatchAnswer(WireModel):
    """Results in the order of the searches."""

    request_id: str
    results: list[SearchAnswer | FailedItem]
    failed: Annotated[int, Field(description="The number of results that are errors.")]


def search_answer(
    result: SearchResult, *, collection: str, request_id: str, queue_ms: float, total_ms: float
) -> dict[str, Any]:
    """The response to one search, as JSON values."""
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
    """The content and configuration of a collection, as JSON values."""
    collection = pipeline.collection
    return {
        "name": name,
        "ready": True,
        "snapshot": collection.snapshot,
        "documents": len(collection),
        "rows": collection.n_rows,
        "encoder": {"name": collection.encoder_name, "fingerprint": collection.encoder_fingerprint},
        "rerankers": list(pipeline.capabilities.rerankers),
        "channels": {
            channel.name: {
                "family": channel.family.name,
                "kind": channel.family.kind,
                "searchable": channel.name in pipeline.capabilities.channels,
                "config": _as_dict(channel.family.config),
            }
            for channel in collection.channels.values()
        },
        "bytes": collection.bytes_by_part(),
        "bytes_per_document": collection.bytes_per_document,
        "plans": {name: resolved.plan.as_json for name, resolved in pipeline.plans.items()},
        "default_plan": DEFAULT_PRESET,
        "examples": examples,
    }


def _as_dict(config: object) -> object:
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
