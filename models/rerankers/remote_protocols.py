"""The HTTP APIs of reranking servers: the request body for one query with documents, and the scores in the response.

Each protocol is two pure functions. Responses are checked: every document must have one score, at its own index.
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
from chamfer.models.networks.chat_messages import Message
from chamfer.models.rerankers.prompts import QWEN3_VL_RERANKER, TRUE_FALSE, JudgePrompt, pair_messages

Json = Any
ProtocolName = Literal["cohere", "jina", "vllm-rerank", "vllm-score", "tei", "openai", "openai-true-false"]
TOP_LOGPROBS = 20
MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


@dataclass(frozen=True, slots=True)
class RemoteProtocol:
    """`request` makes the body for (model, query, documents); `scores` reads f32 [n] from the response for n documents.

    `single` protocols take one document per request; `kind` is the kind of the scores.
    """

    path: str
    request: Callable[[str, Query, Sequence[Document]], Json]
    scores: Callable[[Json, int], F32]
    kind: ScoreKind
    images: bool
    single: bool = False


def data_uri(image: Path | bytes) -> str:
    """The image as a data URI; its media type follows from its first bytes."""
    data = image.read_bytes() if isinstance(image, Path) else image
    kind = next((name for start, name in MAGIC if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _cohere(model: str, query: Query, documents: Sequence[Document]) -> Json:
    texts = [document.content for document in documents]
    return {"model": model, "query": query.text, "documents": texts, "top_n": len(texts)}


def _jina(model: str, query: Query, documents: Sequence[Document]) -> Json:
    def part(text: str, image: Path | bytes | None) -> Json:
        return {"text": text} if image is None else {"image": data_uri(image)}

    query_part = query.text if query.image is None else part(query.text, query.image)
    parts = [part(document.content, document.image) for document in documents]
    return {"model": model, "query": query_part, "documents": parts, "top_n": len(parts), "return_documents": False}


def _vllm_part(text: str, image: Path | bytes | None) -> Json:
    if image is None:
        return text
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": data_uri(image)}}]
    return {"content": [*parts, *([{"type": "text", "text": text}] if text else [])]}


def _vllm_rerank(model: str, query: Query, documents: Sequence[Document]) -> Json:
    parts = [_vllm_part(document.content, document.image) for document in documents]
    return {"model": model, "query": _vllm_part(query.text, query.image), "documents": parts, "top_n": 0}


def _vllm_score(model: str, query: Query, documents: Sequence[Document]) -> Json:
    parts = [_vllm_part(document.content, document.image) for document in documents]
    return {"model": model, "text_1": _vllm_part(query.text, query.image), "text_2": parts}


def _tei(model: str, query: Query, documents: Sequence[Document]) -> Json:
    texts = [document.content for document in documents]
    return {"query": query.text, "texts": texts, "raw_scores": True, "return_text": False, "truncate": True}


def _chat(prompt: JudgePrompt) -> Callable[[str, Query, Sequence[Document]], Json]:
    def request(model: str, query: Query, documents: Sequence[Document]) -> Json:
        [document] = documents
        messages = [_chat_message(message) for message in pair_messages(prompt, query, document)]
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


def _chat_scores(prompt: JudgePrompt) -> Callable[[Json, int], F32]:
    positive = {spelling.strip().lower() for spelling in prompt.positive}
    negative = {spelling.strip().lower() for spelling in prompt.negative}

    def scores(answer: Json, n: int) -> F32:
        """Log-odds f32 [1]; NaN if neither answer is listed.

        An answer that is not listed gets the lowest listed log-probability, an upper bound on its own.
        """
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        log_sums = {True: -math.inf, False: -math.inf}
        for entry in listed:
            word = str(entry["token"]).strip().lower()
            for is_positive, words in ((True, positive), (False, negative)):
                if word in words:
                    log_sums[is_positive] = float(np.logaddexp(log_sums[is_positive], float(entry["logprob"])))
        if all(value == -math.inf for value in log_sums.values()):
            return np.array([np.nan], dtype=np.float32)
        floor = min(float(entry["logprob"]) for entry in listed)
        odds = [value if value > -math.inf else floor for value in (log_sums[True], log_sums[False])]
        return np.array([odds[0] - odds[1]], dtype=np.float32)

    return scores


def _by_index(list_key: str, score_key: str) -> Callable[[Json, int], F32]:
    def scores(answer: Json, n: int) -> F32:
        entries = answer[list_key] if list_key else answer
        indices = [entry["index"] for entry in entries]
        if sorted(indices) != list(range(n)):
            raise Unavailable(
                f"the response scores the documents {sorted(indices)[:20]}, expected each of 0 to {n - 1} once"
            )
        by_index = np.full(n, np.nan, dtype=np.float32)
        for entry in entries:
            by_index[entry["index"]] = entry[score_key]
        return by_index

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
