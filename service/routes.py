"""The HTTP surface. Every endpoint is a coroutine that reads its body and writes its answer itself: the framework's
own conversions, its exit stacks and its thread pool for plain functions cost more than all the rest of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chamfer.errors import ChamferError, NotFound, Unavailable
from service.loading import Answer, ServedCollection
from service.problems import MEDIA_TYPE, ClientLeft, InvalidBody, TooLarge, problem, to_json
from service.records import SearchRequest
from service.schemas import (
    Limits,
    collection_answer,
    read_batch,
    read_item,
    read_search,
    search_answer,
    search_request,
)
from service.telemetry import METRICS_MEDIA_TYPE, Telemetry

WATCH_AFTER_SECONDS = 0.02
REQUEST_ID = "chamfer.request_id"

CollectionName = Annotated[str, Path(description="A name from GET /v1/collections.")]


class DirectRoute(APIRoute):
    """Calls its endpoint with the request and the path's parameters, and sends the Response that comes back.

    The signature still documents the route; what the framework would do with it on every request is left out.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **documentation: Any) -> None:
        super().__init__(path, endpoint, **documentation)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(request=Request(scope, receive), **scope["path_params"])
            await response(scope, receive, send)

        self.app = answer  # what the framework's route calls once it has matched


class Api:
    """The endpoints over a set of served collections."""

    def __init__(
        self,
        collections: Mapping[str, ServedCollection],
        *,
        limits: Limits,
        telemetry: Telemetry,
        examples: Mapping[str, Sequence[str]],
    ) -> None:
        self._collections = collections
        self._limits = limits
        self._telemetry = telemetry
        self._examples = {name: tuple(queries) for name, queries in examples.items()}

    def add_routes(self, router: APIRouter) -> None:
        """Adds all routes with their documentation."""
        collection = "/v1/collections/{name}"
        for path, endpoint, method, documentation in (  # the search first, since routes are tried in order
            (f"{collection}/search", self.search, "POST", _documentation("SearchAnswer", "SearchBody")),
            (f"{collection}/search:batch", self.search_batch, "POST", _documentation("BatchAnswer", "BatchBody")),
            ("/v1/collections", self.list_collections, "GET", _documentation()),
            (collection, self.describe, "GET", _documentation()),
            (f"{collection}/reload", self.reload, "POST", _documentation()),
            ("/healthz", self.healthz, "GET", _documentation()),
            ("/readyz", self.readyz, "GET", _documentation()),
            ("/metrics", self.metrics, "GET", _documentation()),
        ):
            router.add_api_route(path, endpoint, methods=[method], route_class_override=DirectRoute, **documentation)

    async def search(self, name: CollectionName, request: Request) -> Response:
        """Search one collection."""
        received = perf_counter()
        served = self._served(name)
        body = read_search(await _read_body(request, self._limits))
        search = search_request(body, self._limits, monotonic())
        [answer] = await _answers(request.receive, served.submit([search]))
        if isinstance(answer, ChamferError):
            raise answer
        return Json(_answer(answer, name, request, received))

    async def search_batch(self, name: CollectionName, request: Request) -> Response:
        """Search one collection with several queries; each has its own answer or error."""
        received = perf_counter()
        served = self._served(name)
        items = read_batch(await _read_body(request, self._limits), self._limits)
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
        read = [self._read_item(place, item) for place, item in enumerate(items)]
        answers = iter(
            await _answers(request.receive, served.submit([r for r in read if isinstance(r, SearchRequest)]))
        )
        return [result if isinstance(result, ChamferError) else next(answers) for result in read]

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
        """Whether every collection has been opened and warmed up by real searches."""
        states = [self._state(name) for name in self._collections]
        ready = all(state["ready"] for state in states)
        return Json({"ready": ready, "collections": states}, status=200 if ready else 503)

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

    def _read_item(self, place: int, item: Any) -> SearchRequest | InvalidBody:
        try:
            return search_request(read_item(item), self._limits, monotonic())
        except InvalidBody as error:
            return error.under(f"/searches/{place}")


def _documentation(answer: str | None = None, body: str | None = None) -> dict[str, Any]:
    """What OpenAPI says of a route beyond its docstring; schemas are added to the document by `service.app`."""
    responses: dict[int | str, dict[str, Any]] = {
        "default": {"description": "Any error", "content": {MEDIA_TYPE: {"schema": _reference("Problem")}}}
    }
    if answer:
        responses[200] = {"description": "Success", "content": {"application/json": {"schema": _reference(answer)}}}
    documentation: dict[str, Any] = {"responses": responses, "response_class": Response, "response_model": None}
    if body:
        content = {"application/json": {"schema": _reference(body)}}
        documentation["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return documentation


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The whole body; TooLarge as soon as it is known to be, before it is read if its length is announced."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limits.max_body_bytes:
            raise _too_large(limits)
    body = b""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += bytes(message.get("body", b""))
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return body


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the body is larger than {limits.max_body_bytes} bytes (limits.max_body_bytes)")


async def _answers(receive: Receive, futures: Sequence[asyncio.Future[Answer]]) -> list[Answer | ChamferError]:
    """What the futures give, in order. If the client leaves before, they are cancelled; raises ClientLeft then."""
    watch = _DisconnectWatch(receive, futures)
    answers: list[Answer | ChamferError] = []
    try:
        for future in futures:
            try:
                answers.append(await future)
            except ChamferError as error:
                answers.append(error)
        return answers
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        raise
    finally:
        watch.stop()
        for future in futures:
            future.cancel()


class _DisconnectWatch:
    """Cancels futures when the client leaves. Starts only after a while: most searches are over before."""

    def __init__(self, receive: Receive, futures: Sequence[asyncio.Future[Answer]]) -> None:
        self.client_left = False
        self._receive = receive
        self._futures = futures
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)

    def _start(self) -> None:
        self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
        for future in self._futures:
            future.cancel()

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def _answer(answer: Answer, collection: str, request: Request, received: float) -> dict[str, Any]:
    return search_answer(
        answer.result,
        collection=collection,
        request_id=request.scope[REQUEST_ID],
        queue_ms=answer.queue_ms,
        total_ms=(perf_counter() - received) * 1e3,
    )


class Json(Response):
    """JSON, without the general response's look through headers that nobody gave."""

    def __init__(self, value: Any, status: int = 200) -> None:
        self.status_code = status
        self.background = None
        self.body = to_json(value)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
