"""Bodies of rerank requests in the formats of Cohere, Jina, vLLM and TEI, read into one record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.service.http.config import ImageConfig, RerankingConfig
from chamfer.service.http.errors import FieldError, InvalidBody, TooLarge
from chamfer.service.http.image_inputs import looks_like_image, read_image_at

CONCURRENT_FETCHES = 8


class _Url(BaseModel):
    url: str


class _Content(BaseModel):
    type: str
    text: str | None = None
    image_url: _Url | None = None


class _Parts(BaseModel):
    """Text and image, in the form of Jina (`text`, `image`) or vLLM (`content`)."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = None
    content: list[_Content] | None = None


_Part = str | _Parts


class RerankBody(BaseModel):
    """A request in the format of Cohere v1 and v2 and of Jina, extended by `timeout_ms`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"query": "who lost his tail", "documents": ["A fox did.", "A crow."], "top_n": 1}]
        },
    )
    model: str | None = Field(None, description="A reranker of this service; by default the first.")
    query: _Part
    documents: Annotated[list[_Part], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The number of results; all by default or if 0."
    )
    return_documents: bool | None = False
    max_tokens_per_doc: int | None = Field(
        None, description="Accepted but ignored: the model truncates at its own limit."
    )
    max_chunks_per_doc: int | None = None
    timeout_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class TeiBody(BaseModel):
    """A request in the format of text-embeddings-inference. Texts longer than the model reads are always truncated."""

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = True
    truncation_direction: str = "Right"


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """The query and documents of a request of either format."""

    query: Query
    documents: list[Document]


_RERANK = TypeAdapter(RerankBody)
_TEI = TypeAdapter(TeiBody)


def read_rerank(body: bytes) -> RerankBody:
    """The body of a request; raises InvalidBody with a JSON pointer for each error."""
    try:
        return _RERANK.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


def read_tei(body: bytes) -> TeiBody:
    """The body of a request; raises InvalidBody with a JSON pointer for each error."""
    try:
        return _TEI.validate_json(body)
    except ValidationError as error:
        raise InvalidBody.of(error) from None


async def rerank_request(query: _Part, documents: Sequence[_Part], config: RerankingConfig) -> RerankRequest:
    """Query and documents with their images fetched. Raises InvalidBody with a JSON pointer, TooLarge, Unavailable."""
    if len(documents) > config.max_documents:
        raise TooLarge(
            f"found {len(documents)} documents, the limit is {config.max_documents} (reranking.max_documents)"
        )
    query_text, query_image = _text_and_image(query, "/query", config)
    pointers = [f"/documents/{n}" for n in range(len(documents))]
    parts = [_text_and_image(part, pointer, config) for part, pointer in zip(documents, pointers, strict=True)]
    sources = {"/query": query_image, **{pointer: image for pointer, (_, image) in zip(pointers, parts, strict=True)}}
    images = await _fetch_images({p: source for p, source in sources.items() if source is not None}, config.images)
    try:
        read_query = Query("query", query_text, image=images.get("/query"))
    except InvalidInput as error:
        raise InvalidBody([FieldError("/query", error.detail)]) from None
    texts = enumerate(zip(pointers, parts, strict=True))
    return RerankRequest(
        read_query, [Document(str(n), text, image=images.get(pointer)) for n, (pointer, (text, _)) in texts]
    )


async def _fetch_images(sources: Mapping[str, str], config: ImageConfig) -> dict[str, bytes]:
    """The images by JSON pointer."""
    if len(sources) > config.max_images:
        raise TooLarge(f"found {len(sources)} images, the limit is {config.max_images} (reranking.images.max_images)")
    slots = asyncio.Semaphore(CONCURRENT_FETCHES)

    async def fetch(pointer: str, source: str) -> bytes:
        async with slots:
            return await read_image_at(pointer, source, config)

    images = await asyncio.gather(*(fetch(pointer, source) for pointer, source in sources.items()))
    return dict(zip(sources, images, strict=True))


def _text_and_image(part: _Part, pointer: str, config: RerankingConfig) -> tuple[str, str | None]:
    """(text, URI of the image or None) of a query or document."""
    if isinstance(part, str):
        if looks_like_image(part):
            message = 'a plain text is the URI of an image; write {"image": "..."} to have it read as an image'
            raise InvalidBody([FieldError(pointer, message)])
        text, image = part, None
    else:
        text, image = _join_parts(part, pointer)
    if len(text) > config.max_document_characters:
        limit = f"the limit is {config.max_document_characters} (reranking.max_document_characters)"
        raise InvalidBody([FieldError(pointer, f"found {len(text)} characters, {limit}")])
    return text, image


def _join_parts(part: _Parts, pointer: str) -> tuple[str, str | None]:
    texts = [part.text] if part.text else []
    images = [part.image] if part.image else []
    for content in part.content or []:
        if content.type == "text" and content.text is not None:
            texts.append(content.text)
        elif content.type == "image_url" and content.image_url is not None:
            images.append(content.image_url.url)
        else:
            message = f"found a part of type {content.type[:50]!r}, expected text or image_url"
            raise InvalidBody([FieldError(pointer, message)])
    if len(images) > 1 or not (texts or images):
        message = (
            f"found {len(texts)} texts and {len(images)} images, expected a text or an image, and one image at most"
        )
        raise InvalidBody([FieldError(pointer, message)])
    return "\n".join(texts), images[0] if images else None
