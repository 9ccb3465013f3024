"""One channel's query after feedback: choice of the feedback documents, trust in them, and the expanded query.

`expand` runs once for each search and channel and depends on that search alone, so that a result has the same bits in
any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.errors import Internal
from chamfer.core.types import F32, I64, Candidates, DenseVectors, SparseVectors, TokenVectors, Vectors
from chamfer.service.search.channels import SearchChannel
from chamfer.service.search.feedback import Mixture, expand_tokens, rm3, rocchio, sparse_rocchio, standout, trust
from chamfer.service.search.in_flight import Expansion, InFlightSearch
from chamfer.service.search.plans import (
    Average,
    Feedback,
    FeedbackMethod,
    RelevanceModel,
    Rocchio,
    TokenExpansion,
)


def expand(search: InFlightSearch, channel: SearchChannel, query: Vectors) -> Expansion:
    """The expansion of one search's query for a channel; `query` is one row in the stored form of the channel."""
    plan = search.plan.plan.feedback
    if plan is None:
        raise Internal("a search without feedback in its plan reached the feedback stage")
    source, ranking = _source(search, plan, channel.name)
    ranked_rows, ranked_scores = ranking.of(0)
    rows, scores = ranked_rows[: plan.depth], ranked_scores[: plan.depth]
    details: dict[str, Any] = {"source": source}
    trusted = 1.0
    if plan.guard is not None:
        z = standout(ranked_scores, plan.depth)
        trusted = trust(z, plan.guard.low, plan.guard.high)
        details |= {"standout": round(z, 3), "trust": trusted}
    method = plan.channels[channel.name]
    details |= method.model_dump(mode="json")
    if not len(rows) or trusted == 0:
        return Expansion(rows, None, details)
    vectors, effect = _expanded(method, query, channel, (rows, scores), trusted)
    return Expansion(rows, vectors, details | effect)


def _source(search: InFlightSearch, plan: Feedback, name: str) -> tuple[str, Candidates]:
    """(name, ranking) of the source of the feedback documents."""
    channel = plan.source or (name if plan.interpolate == "after" else None)
    if channel is not None and channel in search.runs:
        return channel, search.runs[channel]
    return ("fused" if search.fused else next(iter(search.runs))), search.current


def _expanded(
    method: FeedbackMethod, query: Vectors, channel: SearchChannel, ranked: tuple[I64, F32], trusted: float
) -> tuple[Vectors, dict[str, Any]]:
    """(the expanded query, further details for explanations)."""
    rows, scores = ranked
    documents = channel.required_expandable().vectors(rows)
    if isinstance(method, TokenExpansion) and isinstance(query, TokenVectors) and isinstance(documents, TokenVectors):
        return _expand_tokens(method, query, channel, documents, trusted)
    if isinstance(query, SparseVectors) and isinstance(documents, SparseVectors):
        mixed = _mix_sparse(method, query, documents, scores, trusted)
        return mixed, {"added": len(mixed.terms) - len(query.terms)}
    if (
        isinstance(method, Rocchio | Average)
        and isinstance(query, DenseVectors)
        and isinstance(documents, DenseVectors)
    ):
        mixture = _mixture(method, len(rows)).weakened(trusted)
        values = rocchio(query.values[0], documents.values, mixture, method.length)
        return DenseVectors(values[None]), {"alpha": mixture.alpha, "beta": mixture.beta}
    raise Internal(f"feedback by {method.method} was admitted for {type(query).__name__}")


def _expand_tokens(
    method: TokenExpansion, query: TokenVectors, channel: SearchChannel, documents: TokenVectors, trusted: float
) -> tuple[TokenVectors, dict[str, Any]]:
    commonness = channel.required_token_expandable().commonness
    query_values = query.values.astype(np.float32, copy=False)
    beta = method.beta * trusted
    values = expand_tokens(query_values, documents, commonness, beta, method.clusters, method.vectors)
    expanded = TokenVectors(np.ascontiguousarray(values), np.array([0, len(values)], dtype=np.int64))
    return expanded, {"beta": beta, "added": len(values) - len(query_values)}


def _mix_sparse(
    method: FeedbackMethod, query: SparseVectors, documents: SparseVectors, scores: F32, trusted: float
) -> SparseVectors:
    if isinstance(method, RelevanceModel):
        return rm3(query, documents, scores, method.original, method.terms, trusted)
    if isinstance(method, Rocchio | Average):
        mixture = _mixture(method, len(documents)).weakened(trusted)
        return sparse_rocchio(query, documents, mixture, method.terms, method.length)
    raise Internal(f"feedback by {method.method} was admitted for sparse vectors")


def _mixture(method: Rocchio | Average, k: int) -> Mixture:
    return Mixture(method.alpha, method.beta) if isinstance(method, Rocchio) else Mixture.average(k)
