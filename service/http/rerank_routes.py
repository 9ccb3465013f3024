"""`POST /v1/rerank` and `/v2/rerank` for clients of Cohere, Jina and vLLM, `POST /rerank` for clients of TEI.

Errors have the format of the respective API. All pairs of a request go to the queue of the reranker; between requests,
their first documents take precedence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from chamfer.core.errors import ChamferError, DeadlineExceeded, InvalidInput, NotFound
from chamfer.core.types import F32
from chamfer.service.http.client_disconnect import await_results
from chamfer.service.http.config import RerankingConfig
from chamfer.service.http.endpoint import Json, add_route, read_body
from chamfer.service.http.errors import cohere_error, log_failure, retry_headers, tei_error
from chamfer.service.http.request_id import REQUEST_ID
from chamfer.service.http.rerank_requests import RerankRequest, read_rerank, read_tei, rerank_request
from chamfer.service.http.rerank_responses import rerank_answer, tei_answer
from chamfer.service.reranking.reranker_queue import ServedReranker
from chamfer.service.runtime.telemetry import Telemetry
from chamfer.service.search.deadlines import exceeded


class RerankApi:
    """The endpoints for a set of rerankers; the first one serves requests that name none."""

    def __init__(self, rerankers: Mapping[str, ServedReranker], config: RerankingConfig, telemetry: Telemetry) -> None:
        self._rerankers = rerankers
        self._config = config
        self._telemetry = telemetry

    def add_routes(self, router: APIRouter) -> None:
        """Adds the routes with their descriptions."""
        for path in ("/v1/rerank", "/v2/rerank"):
            add_route(router, "POST", path, self.rerank, body="RerankBody")
        add_route(router, "POST", "/rerank", self.tei, body="TeiBody")

    async def rerank(self, request: Request) -> Response:
        """Rerank documents for a query, in the format of Cohere and Jina."""
        request_id = request.scope[REQUEST_ID]

        async def respond() -> Response:
            body = read_rerank(await read_body(request, self._config.max_body_bytes, "reranking.max_body_bytes"))
            served = self._served(body.model)
            pairs = await rerank_request(body.query, body.documents, self._config)
            scores = await self._scores(request, served, pairs, body.timeout_ms or self._config.timeout_ms)
            return Json(rerank_answer(body, served.name, scores, served.reranker.score_kind, request_id))

        return await self._with_errors(request, respond, lambda error: cohere_error(error, request_id))

    async def tei(self, request: Request) -> Response:
        """Rerank texts for a query, in the format of text-embeddings-inference."""

        async def respond() -> Response:
            body = read_tei(await read_body(request, self._config.max_body_bytes, "reranking.max_body_bytes"))
            served = self._served(None)
            pairs = await rerank_request(body.query, body.texts, self._config)
            scores = await self._scores(request, served, pairs, self._config.timeout_ms)
            unscored = int(np.isnan(scores).sum())
            headers = {"X-Chamfer-Degraded": f"{unscored} texts were not scored in time"} if unscored else {}
            return Json(tei_answer(body, scores, served.reranker.score_kind), headers=headers)

        return await self._with_errors(request, respond, tei_error)

    async def _scores(self, request: Request, served: ServedReranker, pairs: RerankRequest, timeout_ms: float) -> F32:
        """Scores f32 [n]; NaN for documents that were not scored in time. Raises the first error of a document."""
        has_images = pairs.query.image is not None or any(d.image is not None for d in pairs.documents)
        if has_images and not served.reranker.reads_images:
            raise InvalidInput(f"reranker {served.name} reads text only, but the request has images")
        futures = served.submit(pairs.query, pairs.documents)
        outcomes = await await_results(request.receive, futures, timeout_ms / 1e3 if timeout_ms else None)
        for outcome in outcomes:
            if isinstance(outcome, ChamferError) and not isinstance(outcome, DeadlineExceeded):
                raise outcome
        scored = [outcome for outcome in outcomes if not isinstance(outcome, ChamferError)]
        if not scored:
            raise exceeded("any document was scored")
        if len(futures) == 1:
            return scored[0]
        unscored = np.array([np.nan], dtype=np.float32)
        return np.concatenate([unscored if isinstance(outcome, ChamferError) else outcome for outcome in outcomes])

    def _served(self, model: str | None) -> ServedReranker:
        if not self._rerankers:
            raise NotFound("this service has no reranker; models.rerankers lists those to load")
        if model is None:
            return next(iter(self._rerankers.values()))
        if model not in self._rerankers:
            raise NotFound(f"no reranker {model[:100]!r}; this service has {', '.join(self._rerankers)}")
        return self._rerankers[model]

    async def _with_errors(
        self,
        request: Request,
        respond: Callable[[], Awaitable[Response]],
        error_body: Callable[[ChamferError], tuple[int, Any]],
    ) -> Response:
        """The response of `respond`, or the error that it raises in the format of the API."""
        try:
            return await respond()
        except ChamferError as error:
            log_failure(self._telemetry, "rerank failed", error, request.scope[REQUEST_ID])
            status, body = error_body(error)
            return Json(body, status, retry_headers(error))
