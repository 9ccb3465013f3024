"""Pairs of many queries through one pair reranker: failures isolated, best candidates first, cut by deadlines.

Searches call `score_in_time` from their batch; rerank requests call `score_each` from a queue of their own
(`chamfer.service.reranking.reranker_queue`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chamfer.core.errors import (
    ChamferError,
    DeadlineExceeded,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
    as_chamfer_error,
)
from chamfer.core.protocols import Pair, PairReranker
from chamfer.core.types import Document, Query
from chamfer.service.search.deadlines import Clock, DurationEstimate, fits

# Errors that no single input causes: repeating the call on halves of the batch would only add load to a failing server.
SHARED_ERRORS = (Unavailable, Overloaded, DeadlineExceeded, NotFound)
ROUND_PAIRS = 16  # pairs scored between two checks of the deadlines
PairOutcome = float | ChamferError


def score_each(reranker: PairReranker, pairs: Sequence[Pair]) -> list[PairOutcome]:
    """A score or an error for each pair. A batch that fails is bisected until the offending pairs stand alone."""
    try:
        scores = reranker.score_pairs(pairs)
        if scores.shape != (len(pairs),):
            raise Internal(f"reranker {reranker.name} returned {scores.shape} scores for {len(pairs)} pairs")
    except SHARED_ERRORS as error:
        return [error] * len(pairs)
    except Exception as error:
        if len(pairs) > 1:
            middle = len(pairs) // 2
            return score_each(reranker, pairs[:middle]) + score_each(reranker, pairs[middle:])
        return [as_chamfer_error(error, f"reranker {reranker.name}")]
    return [
        score if np.isfinite(score) else Internal(f"reranker {reranker.name} returned a score that is not finite")
        for score in scores.tolist()
    ]


@dataclass(slots=True)
class QueryPairs:
    """One query with its documents, best candidates first, and the scores so far.

    `scores` belongs to the first documents. It stays shorter than `documents` if the deadline cut the rest.
    """

    query: Query
    documents: Sequence[Document]
    deadline: float | None = None
    scores: list[float] = field(default_factory=list)
    error: ChamferError | None = None

    @property
    def unfinished(self) -> bool:
        return self.error is None and len(self.scores) < len(self.documents)


def score_in_time(
    reranker: PairReranker, queries: Sequence[QueryPairs], seconds_per_pair: DurationEstimate, clock: Clock
) -> None:
    """Scores the documents of all queries in rounds, each over the next ones of every query; a deadline ends its query.

    Without deadlines there is a single round, so that the model sees all pairs at once.
    """
    most_documents = max((len(each.documents) for each in queries), default=0)
    while active := [each for each in queries if _has_time(each, queries, seconds_per_pair, clock())]:
        limited = any(each.deadline is not None for each in active)
        per_query = max(1, ROUND_PAIRS // len(active)) if limited else most_documents
        shares = [each.documents[len(each.scores) : len(each.scores) + per_query] for each in active]
        pairs = [(each.query, document) for each, share in zip(active, shares, strict=True) for document in share]
        started = clock()
        outcomes = iter(score_each(reranker, pairs))
        seconds_per_pair.observe((clock() - started) / len(pairs))
        for each, share in zip(active, shares, strict=True):
            _record(each, [next(outcomes) for _ in share])


def _has_time(query: QueryPairs, queries: Sequence[QueryPairs], seconds_per_pair: DurationEstimate, now: float) -> bool:
    if not query.unfinished:
        return False
    remaining = sum(len(each.documents) - len(each.scores) for each in queries if each.unfinished)
    return fits(query.deadline, now, seconds_per_pair.seconds * min(ROUND_PAIRS, remaining))


def _record(query: QueryPairs, outcomes: Sequence[PairOutcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ChamferError):
            query.error = outcome
            return
        query.scores.append(outcome)
