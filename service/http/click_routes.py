"""`POST /v1/collections/{name}/clicks`: which of the shown hits were chosen, for the selection log."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from chamfer.core.errors import NotFound
from chamfer.service.http.endpoint import DirectRoute, Json, documentation, read_body
from chamfer.service.http.errors import FieldError, InvalidBody
from chamfer.service.http.search_schemas import ClicksBody, Limits, read_clicks
from chamfer.service.runtime.selection_log import SelectionLog


class ClickApi:
    """The endpoint over the collections that are served, and their log."""

    def __init__(self, collections: Collection[str], log: SelectionLog, limits: Limits) -> None:
        self._collections = collections
        self._log = log
        self._limits = limits

    def add_routes(self, router: APIRouter) -> None:
        """Adds the route with its documentation."""
        described = documentation("ClicksAnswer", "ClicksBody")
        path = "/v1/collections/{name}/clicks"
        router.add_api_route(path, self.clicks, methods=["POST"], route_class_override=DirectRoute, **described)

    async def clicks(
        self, name: Annotated[str, Path(description="A name from GET /v1/collections.")], request: Request
    ) -> Response:
        """Say which hits of a recorded search were chosen."""
        if name not in self._collections:
            raise NotFound(f"no collection {name[:100]!r}; this service has {', '.join(sorted(self._collections))}")
        body = read_clicks(await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes"))
        shown = self._log.shown(body.request_id, name)
        if shown is None:
            raise NotFound(self._not_recorded())
        _check(body, shown)
        accepted = self._log.clicked(body.request_id, name, [(click.doc_id, click.rank) for click in body.clicks])
        return Json({"request_id": body.request_id, "accepted": len(body.clicks) if accepted else 0}, status=202)

    def _not_recorded(self) -> str:
        if not self._log.on:
            return "this service records no selections (selection_log.directory)"
        return (
            "no search of this request_id is recorded: it was not sampled (selection_log.sample), did not succeed, "
            "or is too long ago (selection_log.remember)"
        )


def _check(body: ClicksBody, shown: tuple[str, ...]) -> None:
    """InvalidBody for a click on what was not shown there."""
    faults = [
        FieldError(f"/clicks/{place}", f"{click.doc_id[:100]!r} was not shown at rank {click.rank}")
        for place, click in enumerate(body.clicks)
        if click.rank > len(shown) or shown[click.rank - 1] != click.doc_id
    ]
    if faults:
        raise InvalidBody(faults[:20])
