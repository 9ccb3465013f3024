"""The shapes in which rerankers are asked over HTTP: what is sent for one query with documents, and what comes back.

Each protocol is two pure functions. Answers are checked: every document has one score, at its own index.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chamfer.core.errors import Unavailable
from chamfer.core.protocols import ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.prompts import QWEN3_VL_RERANKER, TRUE_FALSE, Message, Question, pair_messages

Json = Any
ProtocolName = Literal["cohere", "jina", "vllm-rerank", "vllm-score", "tei", "openai", "openai-true-false"]
TOP_LOGPROBS = 20
MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


@dataclass(frozen=True, slots=True)
class RemoteProtocol:
    """`request` makes the body for (model, query, documents), `scores` reads f32 [n] out of the answer.

    `single` protocols take one document a request; `kind` is what the scores are.
    """

    path: str
    request: Callable[[str, Query, Sequence[Document]], Json]
    scores: Callable[[Json, int], F32]
    kind: ScoreKind
    images: bool
    single: bool = False


def data_uri(image: Path | bytes) -> str:
    """The image as a data URI; its type is read from its first bytes."""
    data = image.read_bytes() if isinstance(image, Path) else image
    kind = next((name for start, name in MAGIC if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _cohere(model: str, query: Query, documents: Sequence[Document]) -> Json:
    texts = [document.content for document in documents]
    return {"model": model, "query": query.text, "documents": texts, "top_n": len(texts)}


def _jina(model: str, query: Query, documents: Sequence[Document]) -> Json:
    def part(text: str, image: Path | bytes | None) -> Json:
        return {"text": text} if image is None else {"image": data_uri(image)}

    asked = query.text if query.image is None else part(query.text, query.image)
    shown = [part(document.content, document.image) for document in documents]
    return {"model": model, "query": asked, "documents": shown, "top_n": len(shown), "return_documents": False}


def _vllm_part(text: str, image: Path | bytes | None) -> Json:
    if image is None:
        return text
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": data_uri(image)}}]
    return {"content": [*parts, *([{"type": "text", "text": text}] if text else [])]}


def _vllm_rerank(model: str, query: Query, documents: Sequence[Document]) -> Json:
    shown = [_vllm_part(document.content, document.image) for document in documents]
    return {"model": model, "query": _vllm_part(query.text, query.image), "documents": shown, "top_n": 0}


def _vllm_score(model: str, query: Query, documents: Sequence[Document]) -> Json:
    shown = [_vllm_part(document.content, document.image) for document in documents]
    return {"model": model, "text_1": _vllm_part(query.text, query.image), "text_2": shown}


def _tei(model: str, query: Query, documents: Sequence[Document]) -> Json:
    texts = [document.content for document in documents]
    return {"query": query.text, "texts": texts, "raw_scores": True, "return_text": False, "truncate": True}


def _chat(question: Question) -> Callable[[str, Query, Sequence[Document]], Json]:
    def request(model: str, query: Query, documents: Sequence[Document]) -> Json:
        [document] = documents
        messages = [_chat_message(message) for message in pair_messages(question, query, document)]
        options = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return {"model": model, "messages": messages, **options}

    return request


def _chat_message(message: Message) -> Json:
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(part["image"])}} if part["type"] == "image" else part
        for part in message["content"]
    ]
    only_text = len(parts) == 1 and parts[0]["type"] == "text"
    return {"role": message["role"], "content": parts[0]["text"] if only_text else parts}


def _chat_scores(question: Question) -> Callable[[Json, int], F32]:
    positive = {spelling.strip().lower() for spelling in question.positive}
    negative = {spelling.strip().lower() for spelling in question.negative}

    def scores(answer: Json, n: int) -> F32:
        """Log-odds f32 [1]. An answer missing from the list counts as the least probable listed: a bound.

        NaN if the list has neither answer.
        """
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {True: -math.inf, False: -math.inf}
        for entry in listed:
            word = str(entry["token"]).strip().lower()
            for is_positive, words in ((True, positive), (False, negative)):
                if word in words:
                    found[is_positive] = float(np.logaddexp(found[is_positive], float(entry["logprob"])))
        if all(value == -math.inf for value in found.values()):
            return np.array([np.nan], dtype=np.float32)
        floor = min(float(entry["logprob"]) for entry in listed)
        odds = [value if value > -math.inf else floor for value in (found[True], found[False])]
        return np.array([odds[0] - odds[1]], dtype=np.float32)

    return scores


def _by_index(list_key: str, score_key: str) -> Callable[[Json, int], F32]:
    def scores(answer: Json, n: int) -> F32:
        out = np.full(n, np.nan, dtype=np.float32)
        entries = answer[list_key] if list_key else answer
        places = [entry["index"] for entry in entries]
        if sorted(places) != list(range(n)):
            raise Unavailable(
                f"the answer scores the documents {sorted(places)[:20]}, expected each of 0 to {n - 1} once"
            )
        for entry in entries:
            out[entry["index"]] = entry[score_key]
        return out

    return scores


PROTOCOLS: dict[str, RemoteProtocol] = {
    "cohere": RemoteProtocol("/v2/rerank", _cohere, _by_index("results", "relevance_score"), "probability", False),
    "jina": RemoteProtocol("/v1/rerank", _jina, _by_index("results", "relevance_score"), "probability", True),
    "vllm-rerank": RemoteProtocol(
        "/rerank", _vllm_rerank, _by_index("results", "relevance_score"), "probability", True
    ),
    "vllm-score": RemoteProtocol("/score", _vllm_score, _by_index("data", "score"), "probability", True),
    "tei": RemoteProtocol("/rerank", _tei, _by_index("", "score"), "logit", False),
    "openai": RemoteProtocol(
        "/v1/chat/completions", _chat(QWEN3_VL_RERANKER), _chat_scores(QWEN3_VL_RERANKER), "logit", True, single=True
    ),
    "openai-true-false": RemoteProtocol(
        "/v1/chat/completions", _chat(TRUE_FALSE), _chat_scores(TRUE_FALSE), "logit", True, single=True
    ),
}
