"""The application: collections, rerankers, routes, console, error responses and lifespan, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from chamfer.core.version import VERSION
from chamfer.service.http.click_routes import ClickApi
from chamfer.service.http.collection_routes import CollectionApi
from chamfer.service.http.config import ServerConfig
from chamfer.service.http.console import add_console
from chamfer.service.http.errors import add_error_responses
from chamfer.service.http.openapi import openapi_document
from chamfer.service.http.request_scope import RequestScope
from chamfer.service.http.rerank_routes import RerankApi
from chamfer.service.http.search_routes import SearchApi
from chamfer.service.reranking.reranker_queue import LoadReranker, ServedReranker
from chamfer.service.runtime.collection_server import ServedCollection
from chamfer.service.runtime.pipeline_loader import LoadPipeline
from chamfer.service.runtime.selection_log import SelectionLog
from chamfer.service.runtime.telemetry import CollectionTelemetry, RerankerTelemetry, Telemetry

DESCRIPTION = (
    "Neural retrieval and reranking. Search a collection by a plan: `fast`, `balanced`, `best`, or a plan spelled out. "
    "Errors are RFC 9457 problem documents with a stable `code` and the id of the request."
)


def create_app(
    collections: Mapping[str, Path],
    config: ServerConfig,
    load_pipeline: LoadPipeline,
    *,
    rerankers: Mapping[str, LoadReranker] | None = None,
    log: Any | None = None,
) -> FastAPI:
    """The ASGI application for collections and rerankers by name.

    `/healthz` responds immediately. Collections load in the background, and `/readyz` returns 200 once all are warm.
    `load_pipeline` opens the newest snapshot at a path (`chamfer.service.runtime.pipeline_loader.PipelineLoader`).
    `log` is a structlog logger (`chamfer.service.runtime.telemetry.json_logger` by default).
    """
    telemetry = Telemetry(log)
    served_collections = {
        name: _served_collection(name, path, load_pipeline, config, telemetry) for name, path in collections.items()
    }
    served_rerankers = {
        name: _served_reranker(name, load, config, telemetry) for name, load in (rerankers or {}).items()
    }
    selections = SelectionLog(config.selection_log, telemetry)
    app = _Application(
        telemetry,
        title="Chamfer",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan([selections, *served_collections.values(), *served_rerankers.values()]),
        docs_url=None,  # both pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    # Routes are added to the application's own router, since an included router costs a second match on every request.
    # They are tried in order, so the search comes first.
    for api in (
        SearchApi(served_collections, config.limits, config.reranking.images, selections),
        CollectionApi(served_collections, served_rerankers, telemetry, config.examples),
        ClickApi(served_collections, selections, config.limits),
        RerankApi(served_rerankers, config.reranking, telemetry),
    ):
        api.add_routes(app.router)
    add_console(app.router)
    app.openapi = partial(openapi_document, app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    add_error_responses(app, telemetry)
    return app


class _Part(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...


def _lifespan(parts: Sequence[_Part]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Starts the parts in order, and closes them in reverse order."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for part in parts:
            await part.start()
        try:
            yield
        finally:
            for part in reversed(parts):
                await part.close()

    return lifespan


def _served_collection(
    name: str, path: Path, load: LoadPipeline, config: ServerConfig, telemetry: Telemetry
) -> ServedCollection:
    observer = CollectionTelemetry(telemetry, name)
    return ServedCollection(
        name, path, load, batching=config.batching, reload_seconds=config.reload_seconds, telemetry=observer
    )


def _served_reranker(name: str, load: LoadReranker, config: ServerConfig, telemetry: Telemetry) -> ServedReranker:
    warm = not name.startswith("remote:")  # a call of a remote server may cost money
    return ServedReranker(name, load, config.reranking.batching, RerankerTelemetry(telemetry, name), warm=warm)


class _Application(FastAPI):
    """FastAPI with only RequestScope and the error responses around its router.

    The framework's own layers serve form files, dependencies and tracing on every request; no route here uses them.
    """

    def __init__(self, telemetry: Telemetry, **options: Any) -> None:
        super().__init__(**options, telemetry={"tracing": False, "metrics": False, "logs": False})
        self._chamfer_telemetry = telemetry

    def build_middleware_stack(self) -> ASGIApp:
        handlers: Mapping[Any, Any] = self.exception_handlers
        return RequestScope(ExceptionMiddleware(self.router, handlers=handlers), self._chamfer_telemetry)
