"""`POST /v1/collections/{name}/clicks`: which of the hits of a recorded search were clicked, for the selection log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, ValidationError
from starlette.responses import Response

from chamfer.core.errors import NotFound
from chamfer.service.http.config import Limits
from chamfer.service.http.endpoint import CollectionName, Json, add_route, read_body
from chamfer.service.http.errors import FieldError, InvalidBody
from chamfer.service.http.search_requests import WireModel
from chamfer.service.runtime.collection_server import ServedCollection, find_collection
from chamfer.service.runtime.selection_log import SelectionLog


class Click(WireModel):
    doc_id: Annotated[str, Field(min_length=1)]
    rank: Annotated[int, Field(ge=1, description="The rank at which it was shown.")]


class ClicksBody(WireModel):
    """Which hits of a recorded search were clicked."""

    request_id: Annotated[
        str,
        Field(
            min_length=1,
            max_length=160,
            description="The request_id of the search; for search N of a batch, request_id/N.",
        ),
    ]
    clicks: Annotated[list[Click], Field(min_length=1, max_length=1000)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request_id": "4f2a", "clicks": [{"doc_id": "fox-1", "rank": 2}]}]}
    )


class ClicksAnswer(WireModel):
    request_id: str
    accepted: Annotated[int, Field(description="The number of clicks recorded; 0 if the queue of the log was full.")]


class ClickApi:
    """The endpoint for the served collections and their selection log."""

    def __init__(self, collections: Mapping[str, ServedCollection], log: SelectionLog, limits: Limits) -> None:
        self._collections = collections
        self._log = log
        self._limits = limits

    def add_routes(self, router: APIRouter) -> None:
        """Adds the route with its description."""
        path = "/v1/collections/{name}/clicks"
        add_route(router, "POST", path, self.clicks, response="ClicksAnswer", body="ClicksBody")

    async def clicks(self, name: CollectionName, request: Request) -> Response:
        """Report which hits of a recorded search were clicked."""
        find_collection(self._collections, name)
        body = _read_clicks(await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes"))
        shown = self._log.shown(body.request_id, name)
        if shown is None:
            raise NotFound(self._reason_not_recorded())
        _check_shown(body, shown)
        clicks = [(click.doc_id, click.rank) for click in body.clicks]
        recorded = self._log.record_clicks(body.request_id, name, clicks)
        return Json({"request_id": body.request_id, "accepted": len(clicks) if recorded else 0}, status=202)

    def _reason_not_recorded(self) -> str:
        if not self._log.enabled:
            return "this service keeps no selection log (selection_log.directory)"
        return (
            "no search with this request_id is recorded: it was not sampled (selection_log.sample), it failed, or "
            "more recent searches have displaced it (selection_log.remember)"
        )


def _read_clicks(body: bytes) -> ClicksBody:
    try:
        return ClicksBody.model_validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def _check_shown(body: ClicksBody, shown: tuple[str, ...]) -> None:
    """InvalidBody if a click is on a document that was not shown at its rank."""
    errors = [
        FieldError(f"/clicks/{index}", f"{click.doc_id[:100]!r} was not shown at rank {click.rank}")
        for index, click in enumerate(body.clicks)
        if click.rank > len(shown) or shown[click.rank - 1] != click.doc_id
    ]
    if errors:
        raise InvalidBody(errors[:20])
