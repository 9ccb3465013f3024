"""Endpoints about collections (list, describe, reload) and about the service (`/healthz`, `/readyz`, `/metrics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chamfer.core.errors import Unavailable
from chamfer.service.http.endpoint import CollectionName, Json, add_route
from chamfer.service.http.search_responses import collection_answer
from chamfer.service.reranking.reranker_queue import ServedReranker, readiness
from chamfer.service.runtime.collection_server import ServedCollection, find_collection
from chamfer.service.runtime.telemetry import METRICS_MEDIA_TYPE, Telemetry


class CollectionApi:
    """The endpoints for a set of served collections and rerankers."""

    def __init__(
        self,
        collections: Mapping[str, ServedCollection],
        rerankers: Mapping[str, ServedReranker],
        telemetry: Telemetry,
        examples: Mapping[str, Sequence[str]],
    ) -> None:
        self._collections = collections
        self._rerankers = rerankers
        self._telemetry = telemetry
        self._examples = {name: tuple(queries) for name, queries in examples.items()}

    def add_routes(self, router: APIRouter) -> None:
        """Adds the routes with their descriptions."""
        for method, path, endpoint in (
            ("GET", "/v1/collections", self.list_collections),
            ("GET", "/v1/collections/{name}", self.describe),
            ("POST", "/v1/collections/{name}/reload", self.reload),
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
        ):
            add_route(router, method, path, endpoint)

    async def list_collections(self, request: Request) -> Response:
        """List the served collections, and which of them are ready."""
        return Json({"collections": [self._state(name) for name in self._collections]})

    async def describe(self, name: CollectionName, request: Request) -> Response:
        """Describe a collection: documents, channels, bytes, encoder, snapshot, plans."""
        pipeline = find_collection(self._collections, name).pipeline
        return Json(collection_answer(name, pipeline, self._examples.get(name, ())))

    async def reload(self, name: CollectionName, request: Request) -> Response:
        """Open the newest snapshot now instead of at the next poll."""
        served = find_collection(self._collections, name)
        changed = await served.reload()
        return Json({"snapshot": served.pipeline.snapshot, "changed": changed})

    async def healthz(self, request: Request) -> Response:
        """Report that the process responds."""
        return Json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Report whether every collection and reranker has been loaded and warmed up."""
        collections = [self._state(name) for name in self._collections]
        rerankers = list(readiness(self._rerankers))
        ready = all(state["ready"] for state in [*collections, *rerankers])
        body = {"ready": ready, "collections": collections, "rerankers": rerankers}
        return Json(body, status=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(self._telemetry.render(), headers={"Content-Type": METRICS_MEDIA_TYPE})

    def _state(self, name: str) -> dict[str, Any]:
        try:
            pipeline = self._collections[name].pipeline
        except Unavailable as reason:
            return {"name": name, "ready": False, "reason": reason.detail}
        return {"name": name, "ready": True, "snapshot": pipeline.snapshot, "documents": len(pipeline.collection)}
