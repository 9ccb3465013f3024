"""The HTTP surface. Every endpoint is a coroutine that reads its body and writes its answer itself: the framework's
own conversions, its exit stacks and its thread pool for plain functions cost more than all the rest of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from chamfer.core.errors import ChamferError, NotFound, Unavailable
from chamfer.service.http.client_disconnect import answers
from chamfer.service.http.endpoint import REQUEST_ID, DirectRoute, Json, documentation, read_body
from chamfer.service.http.errors import InvalidBody, TooLarge, problem
from chamfer.service.http.image_inputs import ImageConfig, read_image_at
from chamfer.service.http.search_schemas import (
    Limits,
    SearchBody,
    collection_answer,
    read_batch,
    read_item,
    read_search,
    search_answer,
    search_request,
)
from chamfer.service.reranking.reranker_queue import ServedReranker, readiness
from chamfer.service.runtime.collection_server import Answer, ServedCollection
from chamfer.service.runtime.selection_log import SelectionLog
from chamfer.service.runtime.telemetry import METRICS_MEDIA_TYPE, Telemetry
from chamfer.service.search.request import SearchRequest

CollectionName = Annotated[str, Path(description="A name from GET /v1/collections.")]


class Api:
    """The endpoints over a set of served collections."""

    def __init__(
        self,
        collections: Mapping[str, ServedCollection],
        rerankers: Mapping[str, ServedReranker],
        limits: Limits,
        telemetry: Telemetry,
        examples: Mapping[str, Sequence[str]],
        selections: SelectionLog,
        images: ImageConfig,
    ) -> None:
        self._images = images
        self._selections = selections
        self._collections = collections
        self._rerankers = rerankers
        self._limits = limits
        self._telemetry = telemetry
        self._examples = {name: tuple(queries) for name, queries in examples.items()}

    def add_routes(self, router: APIRouter) -> None:
        """Adds all routes with their documentation."""
        collection = "/v1/collections/{name}"
        for path, endpoint, method, described in (  # the search first, since routes are tried in order
            (f"{collection}/search", self.search, "POST", documentation("SearchAnswer", "SearchBody")),
            (f"{collection}/search:batch", self.search_batch, "POST", documentation("BatchAnswer", "BatchBody")),
            ("/v1/collections", self.list_collections, "GET", documentation()),
            (collection, self.describe, "GET", documentation()),
            (f"{collection}/reload", self.reload, "POST", documentation()),
            ("/healthz", self.healthz, "GET", documentation()),
            ("/readyz", self.readyz, "GET", documentation()),
            ("/metrics", self.metrics, "GET", documentation()),
        ):
            router.add_api_route(path, endpoint, methods=[method], route_class_override=DirectRoute, **described)

    async def search(self, name: CollectionName, request: Request) -> Response:
        """Search one collection."""
        received = perf_counter()
        served = self._served(name)
        body = read_search(await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes"))
        search = await self._asked(body)
        [answer] = await answers(request.receive, served.submit([search]))
        if isinstance(answer, ChamferError):
            raise answer
        self._selections.searched(request.scope[REQUEST_ID], name, search.query, answer.result)
        return Json(_answer(answer, name, request, received))

    async def search_batch(self, name: CollectionName, request: Request) -> Response:
        """Search one collection with several queries; each has its own answer or error."""
        received = perf_counter()
        served = self._served(name)
        items = read_batch(await read_body(request, self._limits.max_body_bytes, "limits.max_body_bytes"), self._limits)
        bodies = [
            {"error": problem(result, request.scope[REQUEST_ID], request.url.path)}
            if isinstance(result, ChamferError)
            else _answer(result, name, request, received)
            for result in await self._batch(request, served, items)
        ]
        failed = sum("error" in body for body in bodies)
        return Json({"request_id": request.scope[REQUEST_ID], "results": bodies, "failed": failed})

    async def _batch(
        self, request: Request, served: ServedCollection, items: Sequence[Any]
    ) -> list[Answer | ChamferError]:
        images = sum(isinstance(item, dict) and item.get("image") is not None for item in items)
        if images > self._images.max_images:
            raise TooLarge(f"{images} images, the limit is {self._images.max_images} (reranking.images.max_images)")
        reading = [self._read_item(place, item) for place, item in enumerate(items)]
        read = await asyncio.gather(*reading) if images else [await item for item in reading]
        futures = served.submit([r for r in read if isinstance(r, SearchRequest)])
        outcomes = await answers(request.receive, futures)
        results = iter(outcomes)
        out: list[Answer | ChamferError] = [item if isinstance(item, ChamferError) else next(results) for item in read]
        for place, (item, answer) in enumerate(zip(read, out, strict=True)):
            if isinstance(item, SearchRequest) and isinstance(answer, Answer):
                request_id = f"{request.scope[REQUEST_ID]}/{place}"
                self._selections.searched(request_id, served.name, item.query, answer.result)
        return out

    async def _asked(self, body: SearchBody) -> SearchRequest:
        """The search with its image, asking for its pool too if it is to be recorded."""
        search = search_request(body, self._limits, monotonic())
        if body.image is not None:
            search = replace(search, image=await read_image_at("/image", body.image, self._images))
        pool = self._selections.wants(search.k)
        return replace(search, pool=pool) if pool else search

    async def list_collections(self, request: Request) -> Response:
        """The collections that are served, and which of them are ready."""
        return Json({"collections": [self._state(name) for name in self._collections]})

    async def describe(self, name: CollectionName, request: Request) -> Response:
        """What a collection holds: documents, channels, bytes, encoder, snapshot, plans."""
        pipeline = self._served(name).pipeline
        return Json(collection_answer(name, pipeline, self._examples.get(name, ())))

    async def reload(self, name: CollectionName, request: Request) -> Response:
        """Open the newest snapshot now instead of at the next poll."""
        served = self._served(name)
        changed = await served.reload()
        return Json({"snapshot": served.pipeline.snapshot, "changed": changed})

    async def healthz(self, request: Request) -> Response:
        """Whether the process answers."""
        return Json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether every collection and reranker has been opened and warmed up by real work."""
        states = [self._state(name) for name in self._collections]
        rerankers = list(readiness(self._rerankers))
        ready = all(state["ready"] for state in [*states, *rerankers])
        body = {"ready": ready, "collections": states, "rerankers": rerankers}
        return Json(body, status=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(self._telemetry.render(), headers={"Content-Type": METRICS_MEDIA_TYPE})

    def _served(self, name: str) -> ServedCollection:
        found = self._collections.get(name)
        if found is None:
            raise NotFound(f"no collection {name[:100]!r}; this service has {', '.join(sorted(self._collections))}")
        return found

    def _state(self, name: str) -> dict[str, Any]:
        try:
            pipeline = self._collections[name].pipeline
        except Unavailable as reason:
            return {"name": name, "ready": False, "reason": reason.detail}
        return {"name": name, "ready": True, "snapshot": pipeline.snapshot, "documents": len(pipeline.collection)}

    async def _read_item(self, place: int, item: Any) -> SearchRequest | ChamferError:
        try:
            return await self._asked(read_item(item))
        except InvalidBody as error:
            return error.under(f"/searches/{place}")
        except ChamferError as error:  # of its image alone
            return error


def _answer(answer: Answer, collection: str, request: Request, received: float) -> dict[str, Any]:
    return search_answer(
        answer.result,
        collection=collection,
        request_id=request.scope[REQUEST_ID],
        queue_ms=answer.queue_ms,
        total_ms=(perf_counter() - received) * 1e3,
    )
