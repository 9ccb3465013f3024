"""Bodies of search requests, read and checked against the limits. The only way in for searches from the wire."""

from __future__ import annotations

import math
from dataclasses import replace
from time import monotonic
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from chamfer.core.errors import InvalidInput
from chamfer.indexing.collection.filters import Condition, parse_condition
from chamfer.service.http.config import ImageConfig, Limits
from chamfer.service.http.errors import FieldError, InvalidBody, TooLarge
from chamfer.service.http.image_inputs import read_image_at
from chamfer.service.search.deadlines import deadline_after
from chamfer.service.search.plans import Plan
from chamfer.service.search.presets import DEFAULT_PRESET
from chamfer.service.search.request import SearchRequest


class WireModel(BaseModel):
    """A body on the wire: unknown fields are rejected, and no values are converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _plan_tag(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<plan>"


PlanChoice = Annotated[
    Annotated[Annotated[str, Field(min_length=1, max_length=200)], Tag("<name>")] | Annotated[Plan, Tag("<plan>")],
    Discriminator(_plan_tag),
]


class SearchBody(WireModel):
    """One search."""

    query: Annotated[str, Field(min_length=1, description="The text of the query.")]
    k: Annotated[int, Field(ge=1, description="The number of hits to return.")] = 10
    plan: Annotated[PlanChoice, Field(description="The name of a plan of the collection, or a plan spelled out.")] = (
        DEFAULT_PRESET
    )
    filter: Annotated[
        dict[str, Any] | None,
        Field(description="A condition on metadata; it is applied before any channel is searched."),
    ] = None
    explain: Annotated[bool, Field(description="Whether hits include their rank and score in each stage.")] = False
    timeout_ms: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="The deadline of the search; stages that do not fit are skipped."),
    ] = None
    image: Annotated[
        str | None,
        Field(
            description="Image of the query, a data URI or a URL of an allowed host; for rerankers that read images."
        ),
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


class BatchBody(WireModel):
    """Several searches in one request; each has its own result or error."""

    searches: Annotated[list[Any], Field(min_length=1, description="Each like the body of a single search.")]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"searches": [{"query": "fox without a tail"}, {"query": "crow", "k": 3}]}]}
    )


_SEARCH = TypeAdapter(SearchBody)
_BATCH = TypeAdapter(BatchBody)


async def read_search(body: bytes, limits: Limits, images: ImageConfig) -> SearchRequest:
    """The search that a body asks for, with its image fetched.

    Raises InvalidBody with a JSON pointer for each error, TooLarge or Unavailable for its image.
    """
    try:
        search = _SEARCH.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None
    return await _search_request(search, limits, images)


async def read_batch_item(item: Any, limits: Limits, images: ImageConfig) -> SearchRequest:
    """One search of a batch; see `read_search`."""
    try:
        search = _SEARCH.validate_python(item)
    except ValidationError as error:
        raise InvalidBody.of(error) from None
    return await _search_request(search, limits, images)


def read_batch(body: bytes, limits: Limits, images: ImageConfig) -> list[Any]:
    """The searches of a batch as raw values, each for `read_batch_item`.

    Raises InvalidBody with a JSON pointer for each error, and TooLarge for too many images.
    """
    try:
        searches = _BATCH.validate_json(body).searches
    except ValidationError as error:
        raise InvalidBody.of(error) from None
    if len(searches) > limits.max_batch_searches:
        raise _beyond("/searches", f"{len(searches)} searches", "max_batch_searches", limits.max_batch_searches)
    n_images = sum(has_image(item) for item in searches)
    if n_images > images.max_images:
        raise TooLarge(f"found {n_images} images, the limit is {images.max_images} (reranking.images.max_images)")
    return searches


def has_image(item: Any) -> bool:
    """Whether a raw search of a batch has an image."""
    return isinstance(item, dict) and item.get("image") is not None


async def _search_request(body: SearchBody, limits: Limits, images: ImageConfig) -> SearchRequest:
    now = monotonic()
    if body.k > limits.max_k:
        raise _beyond("/k", f"k = {body.k}", "max_k", limits.max_k)
    if len(body.query) > limits.max_query_characters:
        raise _beyond("/query", f"{len(body.query)} characters", "max_query_characters", limits.max_query_characters)
    if not body.query.strip():
        raise InvalidBody([FieldError("/query", "the query is blank")])
    if body.timeout_ms is not None and body.timeout_ms > limits.max_timeout_ms:
        raise _beyond("/timeout_ms", f"{body.timeout_ms} ms", "max_timeout_ms", limits.max_timeout_ms)
    request = SearchRequest(
        query=body.query,
        k=body.k,
        plan=body.plan,
        filter=None if body.filter is None else _condition(body.filter, limits),
        explain=body.explain,
        deadline=deadline_after(body.timeout_ms, now),
    )
    if body.image is None:
        return request
    return replace(request, image=await read_image_at("/image", body.image, images))


def _condition(value: dict[str, Any], limits: Limits) -> Condition:
    _check_size(value, limits)
    try:
        return parse_condition(value)
    except InvalidInput as error:
        # Its messages may begin with a JSON pointer from the root of the body.
        pointer, _, rest = error.detail.partition(" ")
        if not pointer.startswith("/"):
            raise InvalidBody([FieldError("/filter", error.detail)]) from None
        raise InvalidBody([FieldError(pointer.rstrip(":"), rest)]) from None


def _check_size(value: Any, limits: Limits) -> None:
    """Refuses filters that are too deep or too large before any code walks them recursively."""
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


def _beyond(pointer: str, actual: str, setting: str, limit: float) -> InvalidBody:
    return InvalidBody([FieldError(pointer, f"found {actual}, the limit is {limit} (limits.{setting})")])
