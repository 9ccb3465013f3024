"""`POST /v1/collections/{name}/search` and `search:batch`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chamfer.core.errors import ChamferError
from chamfer.service.http.client_disconnect import await_results
from chamfer.service.http.config import ImageConfig, Limits
from chamfer.service.http.endpoint import CollectionName, Json, add_route, read_body
from chamfer.service.http.errors import InvalidBody, problem
from chamfer.service.http.request_id import REQUEST_ID
from chamfer.service.http.search_requests import has_image, read_batch, read_batch_item, read_search
from chamfer.service.http.search_responses import search_answer
from chamfer.service.runtime.collection_server import ServedCollection, ServedResult, find_collection
from chamfer.service.runtime.selection_log import SelectionLog
from chamfer.service.search.request import SearchRequest


class SearchApi:
    """The search endpoints for a set of served collections."""

    def __init__(
        self,
        collections: Mapping[str, ServedCollection],
        limits: Limits,
        images: ImageConfig,
        selections: SelectionLog,
    ) -> None:
        self._collections = collections
        self._limits = limits
        self._images = images
        self._selections = selections

    def add_routes(self, router: APIRouter) -> None:
        """Adds the routes with their descriptions."""
        path = "/v1/collections/{name}/search"
        add_route(router, "POST", path, self.search, response="SearchAnswer", body="SearchBody")
        add_route(router, "POST", f"{path}:batch", self.search_batch, response="BatchAnswer", body="BatchBody")

    async def search(self, name: CollectionName, request: Request) -> Response:
        """Search one collection."""
        received = perf_counter()
        served = find_collection(self._collections, name)
        body = await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes")
        search = self._with_pool(await read_search(body, self._limits, self._images))
        [result] = await await_results(request.receive, served.submit([search]))
        if isinstance(result, ChamferError):
            raise result
        self._selections.record_search(request.scope[REQUEST_ID], name, search.query, result.result)
        return Json(_answer(result, name, request, received))

    async def search_batch(self, name: CollectionName, request: Request) -> Response:
        """Search one collection with several queries; each has its own result or error."""
        received = perf_counter()
        served = find_collection(self._collections, name)
        body = await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes")
        items = read_batch(body, self._limits, self._images)
        bodies = [
            {"error": problem(result, request.scope[REQUEST_ID], request.url.path)}
            if isinstance(result, ChamferError)
            else _answer(result, name, request, received)
            for result in await self._search_items(request, served, items)
        ]
        failed = sum("error" in body for body in bodies)
        return Json({"request_id": request.scope[REQUEST_ID], "results": bodies, "failed": failed})

    async def _search_items(
        self, request: Request, served: ServedCollection, items: Sequence[Any]
    ) -> list[ServedResult | ChamferError]:
        reading = [self._read_item(index, item) for index, item in enumerate(items)]
        # Concurrent tasks cost more than reading a body, so they are used only where images are fetched.
        concurrent = any(has_image(item) for item in items)
        searches = await asyncio.gather(*reading) if concurrent else [await each for each in reading]
        futures = served.submit([search for search in searches if isinstance(search, SearchRequest)])
        outcomes = await await_results(request.receive, futures)
        in_order = iter(outcomes)
        results = [search if isinstance(search, ChamferError) else next(in_order) for search in searches]
        for index, (search, result) in enumerate(zip(searches, results, strict=True)):
            if isinstance(search, SearchRequest) and isinstance(result, ServedResult):
                request_id = f"{request.scope[REQUEST_ID]}/{index}"
                self._selections.record_search(request_id, served.name, search.query, result.result)
        return results

    async def _read_item(self, index: int, item: Any) -> SearchRequest | ChamferError:
        try:
            return self._with_pool(await read_batch_item(item, self._limits, self._images))
        except InvalidBody as error:
            return error.under(f"/searches/{index}")
        except ChamferError as error:  # its image could not be read
            return error

    def _with_pool(self, search: SearchRequest) -> SearchRequest:
        """The search, which also returns its pool of candidates if it is sampled for the selection log."""
        pool = self._selections.pool_size(search.k)
        return replace(search, pool=pool) if pool else search


def _answer(served: ServedResult, collection: str, request: Request, received: float) -> dict[str, Any]:
    return search_answer(
        served.result,
        collection=collection,
        request_id=request.scope[REQUEST_ID],
        queue_ms=served.queue_ms,
        total_ms=(perf_counter() - received) * 1e3,
    )
