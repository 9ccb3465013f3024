"""The application: collections, routes, console, request ids, errors and lifespan put together."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import getrandbits
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chamfer.core.errors import ChamferError, Internal, InvalidInput
from chamfer.core.version import VERSION
from chamfer.service.http.click_routes import ClickApi
from chamfer.service.http.console import add_console
from chamfer.service.http.endpoint import REQUEST_ID
from chamfer.service.http.errors import ClientLeft, from_status, problem_response
from chamfer.service.http.rerank_routes import RerankApi
from chamfer.service.http.rerank_schemas import RerankingConfig
from chamfer.service.http.search_routes import Api
from chamfer.service.http.search_schemas import Limits, component_schemas
from chamfer.service.reranking.reranker_queue import LoadReranker, ServedReranker
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.runtime.collection_server import LoadPipeline, ServedCollection
from chamfer.service.runtime.selection_log import SelectionLog, SelectionLogConfig
from chamfer.service.runtime.telemetry import CollectionTelemetry, RerankerTelemetry, Telemetry

DESCRIPTION = (
    "Neural retrieval and reranking. Search a collection by a plan: `fast`, `balanced`, `best`, or one spelled out. "
    "Errors are RFC 9457 problem documents with a stable `code` and the request's id."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the service runs, beside what it serves.

    host, port      where it listens
    drain_seconds   how long a stop waits for requests that are being answered
    reload_seconds  how often a collection's pointer file is looked at for a newer snapshot
    examples        queries that the console offers, by collection
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    reload_seconds: float = 1.0
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reranking: RerankingConfig = field(default_factory=RerankingConfig)
    selection_log: SelectionLogConfig = field(default_factory=SelectionLogConfig)

    def __post_init__(self) -> None:
        if not self.reload_seconds > 0:
            raise InvalidInput(f"reload_seconds is {self.reload_seconds}, expected above 0")
        if self.limits.max_batch_searches > self.batching.max_waiting:
            raise InvalidInput(
                f"limits.max_batch_searches ({self.limits.max_batch_searches}) exceeds batching.max_waiting "
                f"({self.batching.max_waiting}): the largest batch could never be queued"
            )
        if self.reranking.max_documents > self.reranking.batching.max_waiting:
            raise InvalidInput(
                f"reranking.max_documents ({self.reranking.max_documents}) exceeds reranking.batching.max_waiting "
                f"({self.reranking.batching.max_waiting}): the largest request could never be queued"
            )


def create_app(
    collections: Mapping[str, Path],
    config: ServerConfig,
    load_pipeline: LoadPipeline,
    *,
    rerankers: Mapping[str, LoadReranker] | None = None,
    log: Any | None = None,
) -> FastAPI:
    """The ASGI application over collections and rerankers by name.

    `/healthz` answers at once; collections load in the background, and `/readyz` answers 200 when all are warm.
    `load_pipeline` opens the newest snapshot at a path (`chamfer.service.runtime.collection_server.PipelineLoader`).
    """
    telemetry = Telemetry(log)
    served = {
        name: ServedCollection(
            name,
            path,
            load_pipeline,
            batching=config.batching,
            reload_seconds=config.reload_seconds,
            telemetry=CollectionTelemetry(telemetry, name),
        )
        for name, path in collections.items()
    }
    judges = {name: _served_reranker(name, load, config, telemetry) for name, load in (rerankers or {}).items()}

    selections = SelectionLog(config.selection_log, telemetry)
    parts: list[ServedCollection | ServedReranker | SelectionLog] = [selections, *served.values(), *judges.values()]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for part in parts:
            await part.start()
        try:
            yield
        finally:
            for part in reversed(parts):
                await part.close()

    app = _Application(
        telemetry,
        title="Chamfer",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    # Onto the application's own router: an included one is matched in a second step on every request.
    images = config.reranking.images
    Api(served, judges, config.limits, telemetry, config.examples, selections, images).add_routes(app.router)
    ClickApi(served, selections, config.limits).add_routes(app.router)
    RerankApi(judges, config.reranking, telemetry).add_routes(app.router)
    add_console(app.router)
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    _add_error_answers(app, telemetry)
    return app


def _served_reranker(name: str, load: LoadReranker, config: ServerConfig, telemetry: Telemetry) -> ServedReranker:
    warm = not name.startswith("remote:")  # a server elsewhere may cost something
    observer = RerankerTelemetry(telemetry, name)
    return ServedReranker(name, load, config.reranking.batching, observer, warm=warm)


class _Application(FastAPI):
    """FastAPI with nothing around its router but our own middleware and the table of error answers.

    The framework's layers serve form files, dependencies and its tracing, which no route here has, on every request.
    """

    def __init__(self, telemetry: Telemetry, **options: Any) -> None:
        super().__init__(**options, telemetry={"tracing": False, "metrics": False, "logs": False})
        self._own_telemetry = telemetry

    def build_middleware_stack(self) -> ASGIApp:
        answers: Mapping[Any, Any] = self.exception_handlers
        return RequestScope(ExceptionMiddleware(self.router, handlers=answers), self._own_telemetry)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(component_schemas())
        app.openapi_schema = schema
    return app.openapi_schema


def _add_error_answers(app: FastAPI, telemetry: Telemetry) -> None:
    async def on_chamfer_error(request: Request, error: ChamferError) -> Response:
        if error.status == 500:
            telemetry.log.error("request failed", request_id=request.scope[REQUEST_ID], code=error.code, exc_info=error)
        return problem_response(error, request.scope[REQUEST_ID], request.url.path)

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        failure = from_status(error.status_code, str(error.detail))
        return problem_response(failure, request.scope[REQUEST_ID], request.url.path, error.headers)

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return problem_response(InvalidInput(str(error)), request.scope[REQUEST_ID], request.url.path)

    async def on_client_left(_request: Request, _error: ClientLeft) -> Response:
        return Response(status_code=499)

    for kind, answer in (
        (ChamferError, on_chamfer_error),
        (HTTPException, on_http_exception),
        (RequestValidationError, on_validation_error),
        (ClientLeft, on_client_left),
    ):
        app.add_exception_handler(kind, answer)  # type: ignore[arg-type]  # each takes its own kind of exception


_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestScope:
    """Plain ASGI middleware: gives each request its id, counts the answer, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = scope[REQUEST_ID] = _request_id(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            self._telemetry.log.error("unhandled error", request_id=request_id, path=scope["path"], exc_info=error)
            if not status:
                answer = problem_response(Internal("unhandled"), request_id, scope["path"])
                await answer(scope, receive, send_with_id)
        finally:
            self._telemetry.answered(_method(scope), _route(scope), status, perf_counter() - started)


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-ID if it is harmless in a header and a log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _SANE_REQUEST_ID.fullmatch(given):
                return str(given)
            break
    return f"{getrandbits(64):016x}"


def _route(scope: Scope) -> str:
    """The pattern of the route for metrics, never what a caller made up."""
    if "route" in scope:
        return str(scope["route"].path)
    return scope["path"] if "endpoint" in scope and not scope["path_params"] else "unmatched"  # a page


def _method(scope: Scope) -> str:
    """The method for metrics; what the caller made up is counted under one name."""
    return (
        scope["method"] if scope["method"] in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} else "other"
    )
