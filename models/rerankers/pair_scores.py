"""Shared by all rerankers: `score` in terms of `score_pairs`, and the checks for images and for non-finite scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import Pair, PairReranker
from chamfer.core.types import F32, Document, Query


def scores_of(reranker: PairReranker, query: Query, documents: Sequence[Document]) -> F32:
    """Implements `Reranker.score` by `score_pairs`. Raises Internal for a score that is not finite."""
    scores = reranker.score_pairs([(query, document) for document in documents])
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise Internal(f"reranker {reranker.name} gave the score {scores[row]} for document {documents[row].doc_id!r}")
    return scores


def refuse_images(name: str, pairs: Sequence[Pair]) -> None:
    """InvalidInput for a pair that a text-only reranker cannot score. An image beside a text is ignored."""
    for query, document in pairs:
        if query.image is not None:
            raise InvalidInput(f"reranker {name} reads text only, the query has an image")
        if document.image is not None and not document.content:
            raise InvalidInput(f"reranker {name} reads text only, document {document.doc_id!r} is an image")
