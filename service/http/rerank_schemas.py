"""Bodies of rerank requests in the shapes of Cohere, Jina, vLLM and TEI, read into one record, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chamfer.core.errors import ChamferError, InvalidInput
from chamfer.core.protocols import ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.service.http.errors import FieldError, InvalidBody, TooLarge
from chamfer.service.http.image_inputs import ImageConfig, looks_like_image, read_image_at
from chamfer.service.runtime.batching import BatchingConfig

FETCHES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatchingConfig(BatchingConfig):
    """The same limits for the queue of one reranker, counted in pairs."""

    max_waiting: int = 8192
    max_batch: int = 256
    token_budget: int = 8192
    inline_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankingConfig:
    """max_documents            of one request
    max_document_characters  of one document or query
    max_body_bytes           of one request, its images included
    timeout_ms               after which a request is answered with what is scored by then; 0: never, unless it asks
    score_cache_bytes        memory for scores that were computed before, of all rerankers; 0: none
    batching                 the queue of each reranker, in pairs
    images                   what is read and fetched
    """

    max_documents: int = 1000
    max_document_characters: int = 1_000_000
    max_body_bytes: int = 32 << 20
    timeout_ms: float = 0.0
    score_cache_bytes: int = 64 << 20
    batching: PairBatchingConfig = field(default_factory=PairBatchingConfig)
    images: ImageConfig = field(default_factory=ImageConfig)


class _Url(BaseModel):
    url: str


class _Content(BaseModel):
    type: str
    text: str | None = None
    image_url: _Url | None = None


class _Parts(BaseModel):
    """Text and image, as Jina (`text`, `image`) and vLLM (`content`) write them."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = None
    content: list[_Content] | None = None


_Part = str | _Parts


class RerankBody(BaseModel):
    """A request in the shape of Cohere v1 and v2 and of Jina; `timeout_ms` is Chamfer's own."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"query": "who lost his tail", "documents": ["A fox did.", "A crow."], "top_n": 1}]
        },
    )
    model: str | None = Field(None, description="A reranker of this service; the first one if it is left out.")
    query: _Part
    documents: Annotated[list[_Part], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = Field(None, description="How many are returned; 0 or nothing: all.")
    return_documents: bool | None = False
    max_tokens_per_doc: int | None = Field(
        None, description="Read and left to the model, which cuts at its own length."
    )
    max_chunks_per_doc: int | None = None
    timeout_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class TeiBody(BaseModel):
    """A request in the shape of text-embeddings-inference. Texts beyond the model's length are always cut."""

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = True
    truncation_direction: str = "Right"


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """What both shapes come to."""

    query: Query
    documents: list[Document]


_RERANK = TypeAdapter(RerankBody)
_TEI = TypeAdapter(TeiBody)


def read_rerank(body: bytes) -> RerankBody:
    """InvalidBody with a JSON pointer for each fault."""
    try:
        return _RERANK.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def read_tei(body: bytes) -> TeiBody:
    """InvalidBody with a JSON pointer for each fault."""
    try:
        return _TEI.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


async def rerank_request(query: _Part, documents: Sequence[_Part], config: RerankingConfig) -> RerankRequest:
    """Query and documents with their images read. Raises InvalidBody with the place, TooLarge, Unavailable."""
    if len(documents) > config.max_documents:
        raise TooLarge(f"{len(documents)} documents, the limit is {config.max_documents} (reranking.max_documents)")
    read = {"/query": _split(query, "/query", config)}
    read |= {f"/documents/{n}": _split(part, f"/documents/{n}", config) for n, part in enumerate(documents)}
    images = await _images({place: image for place, (_, image) in read.items() if image is not None}, config.images)
    places = iter(read.items())
    _, (text, _) = next(places)
    try:
        asked = Query("query", text, image=images.get("/query"))
    except InvalidInput as error:
        raise InvalidBody([FieldError("/query", error.detail)]) from None
    shown = [Document(str(n), own, image=images.get(place)) for n, (place, (own, _)) in enumerate(places)]
    return RerankRequest(asked, shown)


async def _images(sources: Mapping[str, str], config: ImageConfig) -> dict[str, bytes]:
    if len(sources) > config.max_images:
        raise TooLarge(f"{len(sources)} images, the limit is {config.max_images} (reranking.images.max_images)")
    turns = asyncio.Semaphore(FETCHES)

    async def one(place: str, source: str) -> bytes:
        async with turns:
            return await read_image_at(place, source, config)

    found = await asyncio.gather(*(one(place, source) for place, source in sources.items()))
    return dict(zip(sources, found, strict=True))


def _split(part: _Part, place: str, config: RerankingConfig) -> tuple[str, str | None]:
    """(text, address of the image or None)."""
    if isinstance(part, str):
        if looks_like_image(part):
            fault = 'a plain text is the address of an image; write {"image": "..."} to have it looked at'
            raise InvalidBody([FieldError(place, fault)])
        text, image = part, None
    else:
        text, image = _of_parts(part, place)
    if len(text) > config.max_document_characters:
        limit = f"the limit is {config.max_document_characters} (reranking.max_document_characters)"
        raise InvalidBody([FieldError(place, f"found {len(text)} characters, {limit}")])
    return text, image


def _of_parts(part: _Parts, place: str) -> tuple[str, str | None]:
    texts = [part.text] if part.text else []
    images = [part.image] if part.image else []
    for content in part.content or []:
        if content.type == "text" and content.text is not None:
            texts.append(content.text)
        elif content.type == "image_url" and content.image_url is not None:
            images.append(content.image_url.url)
        else:
            raise InvalidBody([FieldError(place, f"a part of type {content.type[:50]!r}; expected text or image_url")])
    if len(images) > 1 or not (texts or images):
        raise InvalidBody([FieldError(place, f"found {len(texts)} texts and {len(images)} images; one image at most")])
    return "\n".join(texts), images[0] if images else None


def activated(scores: F32, kind: ScoreKind) -> F32:
    """Scores as rerank APIs give them: logits become probabilities, all else stays."""
    if kind != "logit":
        return scores
    out: F32 = (0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64)))).astype(np.float32)
    return out


def raw(scores: F32, kind: ScoreKind) -> F32:
    """Scores before a sigmoid; probabilities of 0 and 1 come as far as float32 can tell them from these."""
    if kind != "probability":
        return scores
    clipped = np.clip(scores.astype(np.float64), 1e-38, 1.0 - 2.0**-24)
    out: F32 = np.log(clipped / (1.0 - clipped)).astype(np.float32)
    return out


def ranked(scores: F32) -> list[tuple[int, float]]:
    """(index, score), the best first, ties by index; unscored documents (NaN) are left out."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [(index, float(scores[index])) for index in order if not np.isnan(scores[index])]


def rerank_answer(body: RerankBody, model: str, scores: F32, kind: ScoreKind, request_id: str) -> dict[str, Any]:
    """The answer in a shape that both Cohere's and Jina's clients read."""
    best = ranked(activated(scores, kind))
    unscored = len(scores) - len(best)
    results = []
    for index, score in best[: body.top_n or len(best)]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if body.return_documents:
            part = body.documents[index]
            result["document"] = {"text": part} if isinstance(part, str) else part.model_dump(exclude_none=True)
        results.append(result)
    characters = sum(len(part) for part in [body.query, *body.documents] if isinstance(part, str))
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    if unscored:
        meta["warnings"] = [f"degraded: {unscored} of {len(scores)} documents were not scored in time and are left out"]
    return {
        "id": request_id,
        "model": model,
        "object": "list",
        "results": results,
        "usage": {"total_tokens": characters // 4},
        "score_kind": "probability" if kind == "logit" else kind,
        "degraded": bool(unscored),
        "meta": meta,
    }


def tei_answer(body: TeiBody, scores: F32, kind: ScoreKind) -> list[dict[str, Any]]:
    """The bare array of TEI."""
    shown = raw(scores, kind) if body.raw_scores else activated(scores, kind)
    return [
        {"index": index, **({"text": body.texts[index]} if body.return_text else {}), "score": score}
        for index, score in ranked(shown)
    ]


def cohere_error(error: ChamferError, request_id: str) -> dict[str, Any]:
    """The error body of Cohere (`message`) and of Jina (`detail`)."""
    said = _said(error)
    return {"id": request_id, "message": said, "detail": said}


_TEI_KINDS = {413: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def tei_error(error: ChamferError) -> tuple[int, dict[str, Any]]:
    """(status, error body) of TEI: 422 for a faulty body, 424 where the model failed."""
    status = {400: 422, 404: 424, 500: 424, 504: 424}.get(error.status, error.status)
    return status, {"error": _said(error), "error_type": _TEI_KINDS.get(status, "Backend")}


def _said(error: ChamferError) -> str:
    return error.detail if error.status != 500 else "the reranker failed; the log of the service has more"
