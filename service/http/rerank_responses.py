"""Bodies of rerank responses in the formats of Cohere, Jina and TEI. Error bodies are in `errors`."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.protocols import ScoreKind
from chamfer.core.types import F32
from chamfer.service.http.rerank_requests import RerankBody, TeiBody


def activated(scores: F32, kind: ScoreKind) -> F32:
    """Scores as rerank APIs return them: logits become probabilities, other kinds are unchanged."""
    if kind != "logit":
        return scores
    probabilities: F32 = (0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64)))).astype(np.float32)
    return probabilities


def raw(scores: F32, kind: ScoreKind) -> F32:
    """Scores before the sigmoid; probabilities of 0 and 1 are clipped to the nearest that give a finite logit."""
    if kind != "probability":
        return scores
    clipped = np.clip(scores.astype(np.float64), 1e-38, 1.0 - 2.0**-24)
    logits: F32 = np.log(clipped / (1.0 - clipped)).astype(np.float32)
    return logits


def ranked(scores: F32) -> list[tuple[int, float]]:
    """(index, score) by descending score, ties by index; unscored documents (NaN) are omitted."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [(index, float(scores[index])) for index in order if not np.isnan(scores[index])]


def rerank_answer(body: RerankBody, model: str, scores: F32, kind: ScoreKind, request_id: str) -> dict[str, Any]:
    """A response that the clients of both Cohere and Jina read."""
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
        meta["warnings"] = [f"degraded: {unscored} of {len(scores)} documents were not scored in time and are omitted"]
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
    """A response in the format of TEI: a bare array."""
    returned = raw(scores, kind) if body.raw_scores else activated(scores, kind)
    return [
        {"index": index, **({"text": body.texts[index]} if body.return_text else {}), "score": score}
        for index, score in ranked(returned)
    ]
