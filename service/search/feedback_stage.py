"""One channel's query after feedback: which documents it learns from, whether they are trusted, what comes of it.

`expand` is asked once for each search and channel and depends on that search alone, so that a result has the same bits
in any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.errors import Internal
from chamfer.core.types import F32, I64, Candidates, DenseVectors, SparseVectors, TokenVectors, Vectors
from chamfer.service.search.feedback import Mixture, expand_tokens, rm3, rocchio, sparse_rocchio, standout, trust
from chamfer.service.search.plan_fields import (
    Average,
    Feedback,
    FeedbackMethod,
    RelevanceModel,
    Rocchio,
    TokenExpansion,
)
from chamfer.service.search.stages import Expansion, Search


def expand(search: Search, name: str, retriever: Any, query: Vectors) -> Expansion:
    """The expansion of one search's query (one row) for the channel `name`; `query` in the retriever's stored form."""
    plan = search.plan.plan.feedback
    if plan is None:
        raise Internal("feedback was asked of a plan without it")
    source, ranking = _source(search, plan, name)
    found, found_scores = ranking.of(0)
    rows, scores = found[: plan.depth], found_scores[: plan.depth]
    facts: dict[str, Any] = {"source": source}
    trusted = 1.0
    if plan.guard is not None:
        standing = standout(found_scores, plan.depth)
        trusted = trust(standing, plan.guard.low, plan.guard.high)
        facts |= {"standout": round(standing, 3), "trust": trusted}
    method = plan.channels[name]
    facts |= method.model_dump(mode="json")
    if not len(rows) or trusted == 0:
        return Expansion(rows, None, facts)
    vectors, more = _mix(method, query, retriever, (rows, scores), trusted)
    return Expansion(rows, vectors, facts | more)


def _source(search: Search, plan: Feedback, name: str) -> tuple[str, Candidates]:
    """(its name, the ranking whose first documents are learnt from)."""
    channel = plan.source or (name if plan.interpolate == "after" else None)
    if channel is not None and channel in search.runs:
        return channel, search.runs[channel]
    return ("fused" if search.fused else next(iter(search.runs))), search.current


def _mix(
    method: FeedbackMethod, query: Vectors, retriever: Any, ranked: tuple[I64, F32], trusted: float
) -> tuple[Vectors, dict[str, Any]]:
    """(the new query, what else there is to say about it)."""
    rows, scores = ranked
    documents = retriever.vectors(rows)
    if isinstance(method, TokenExpansion) and isinstance(query, TokenVectors):
        own = query.values.astype(np.float32, copy=False)
        beta = method.beta * trusted
        values = expand_tokens(own, documents, retriever.commonness, beta, method.clusters, method.vectors)
        new = TokenVectors(np.ascontiguousarray(values), np.array([0, len(values)], dtype=np.int64))
        return new, {"beta": beta, "added": len(values) - len(own)}
    if isinstance(query, SparseVectors):
        mixed = _mix_sparse(method, query, documents, scores, trusted)
        return mixed, {"added": len(mixed.terms) - len(query.terms)}
    if isinstance(method, Rocchio | Average) and isinstance(query, DenseVectors):
        mixture = _mixture(method, len(rows)).trusted(trusted)
        values = rocchio(query.values[0], documents.values, mixture, method.length)
        return DenseVectors(values[None]), {"alpha": mixture.alpha, "beta": mixture.beta}
    raise Internal(f"feedback by {method.method} was admitted for {type(query).__name__}")


def _mix_sparse(
    method: FeedbackMethod, query: SparseVectors, documents: SparseVectors, scores: F32, trusted: float
) -> SparseVectors:
    if isinstance(method, RelevanceModel):
        return rm3(query, documents, scores, method.original, method.terms, trusted)
    if isinstance(method, Rocchio | Average):
        mixture = _mixture(method, len(documents)).trusted(trusted)
        return sparse_rocchio(query, documents, mixture, method.terms, method.length)
    raise Internal(f"feedback by {method.method} was admitted for sparse vectors")


def _mixture(method: Rocchio | Average, k: int) -> Mixture:
    return Mixture(method.alpha, method.beta) if isinstance(method, Rocchio) else Mixture.average(k)
