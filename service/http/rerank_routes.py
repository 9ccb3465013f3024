"""`POST /v1/rerank` and `/v2/rerank` for clients of Cohere, Jina and vLLM, `POST /rerank` for those of TEI.

Each answers errors as its model does. All of a request's pairs go to the reranker's queue, the first documents first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from chamfer.core.errors import ChamferError, DeadlineExceeded, InvalidInput, NotFound
from chamfer.core.types import F32
from chamfer.service.http.client_disconnect import answers
from chamfer.service.http.endpoint import REQUEST_ID, DirectRoute, Json, documentation, read_body
from chamfer.service.http.errors import problem_headers
from chamfer.service.http.rerank_schemas import (
    RerankingConfig,
    RerankRequest,
    cohere_error,
    read_rerank,
    read_tei,
    rerank_answer,
    rerank_request,
    tei_answer,
    tei_error,
)
from chamfer.service.reranking.reranker_queue import ServedReranker
from chamfer.service.runtime.telemetry import Telemetry


class RerankApi:
    """The endpoints over a set of rerankers; the first is the one of requests that name none."""

    def __init__(self, rerankers: Mapping[str, ServedReranker], config: RerankingConfig, telemetry: Telemetry) -> None:
        self._rerankers = rerankers
        self._config = config
        self._telemetry = telemetry

    def add_routes(self, router: APIRouter) -> None:
        """Adds the routes with their documentation."""
        for path in ("/v1/rerank", "/v2/rerank"):
            described = documentation(None, "RerankBody")
            router.add_api_route(path, self.rerank, methods=["POST"], route_class_override=DirectRoute, **described)
        described = documentation(None, "TeiBody")
        router.add_api_route("/rerank", self.tei, methods=["POST"], route_class_override=DirectRoute, **described)

    async def rerank(self, request: Request) -> Response:
        """Rerank documents for a query, in the shape of Cohere and Jina."""
        request_id = request.scope[REQUEST_ID]

        async def answered() -> Response:
            body = read_rerank(await read_body(request, self._config.max_body_bytes, "reranking.max_body_bytes"))
            served = self._served(body.model)
            asked = await rerank_request(body.query, body.documents, self._config)
            scores = await self._scores(request, served, asked, body.timeout_ms or self._config.timeout_ms)
            return Json(rerank_answer(body, served.name, scores, served.reranker.score_kind, request_id))

        return await self._guarded(request, answered, lambda error: (error.status, cohere_error(error, request_id)))

    async def tei(self, request: Request) -> Response:
        """Rerank texts for a query, in the shape of text-embeddings-inference."""

        async def answered() -> Response:
            body = read_tei(await read_body(request, self._config.max_body_bytes, "reranking.max_body_bytes"))
            served = self._served(None)
            asked = await rerank_request(body.query, body.texts, self._config)
            scores = await self._scores(request, served, asked, self._config.timeout_ms)
            unscored = int(np.isnan(scores).sum())
            headers = {"X-Chamfer-Degraded": f"{unscored} texts were not scored in time"} if unscored else {}
            return Json(tei_answer(body, scores, served.reranker.score_kind), headers=headers)

        return await self._guarded(request, answered, tei_error)

    async def _scores(self, request: Request, served: ServedReranker, asked: RerankRequest, timeout_ms: float) -> F32:
        """Scores f32 [n]; NaN for documents that the time did not reach. Raises the first error of a document."""
        has_images = asked.query.image is not None or any(d.image is not None for d in asked.documents)
        if has_images and not served.reranker.reads_images:
            raise InvalidInput(f"reranker {served.name} reads text only, and the request has images")
        futures = served.submit(asked.query, asked.documents)
        outcomes = await answers(request.receive, futures, timeout_ms / 1e3 if timeout_ms else None)
        for outcome in outcomes:
            if isinstance(outcome, ChamferError) and not isinstance(outcome, DeadlineExceeded):
                raise outcome
        scored = [outcome for outcome in outcomes if not isinstance(outcome, ChamferError)]
        if not scored:
            raise DeadlineExceeded("no document was scored in the allowed time; allow more by timeout_ms")
        if len(futures) == 1:
            return scored[0]
        none = np.array([np.nan], dtype=np.float32)
        return np.concatenate([none if isinstance(outcome, ChamferError) else outcome for outcome in outcomes])

    def _served(self, model: str | None) -> ServedReranker:
        if not self._rerankers:
            raise NotFound("this service has no reranker; models.rerankers lists those to load")
        if model is None:
            return next(iter(self._rerankers.values()))
        if model not in self._rerankers:
            raise NotFound(f"no reranker {model[:100]!r}; this service has {', '.join(self._rerankers)}")
        return self._rerankers[model]

    async def _guarded(
        self,
        request: Request,
        answered: Callable[[], Awaitable[Response]],
        body_of: Callable[[ChamferError], tuple[int, Any]],
    ) -> Response:
        try:
            return await answered()
        except ChamferError as error:
            if error.status == 500:
                request_id = request.scope[REQUEST_ID]
                self._telemetry.log.error("rerank failed", request_id=request_id, code=error.code, exc_info=error)
            status, body = body_of(error)
            return Json(body, status, problem_headers(error))
