"""What all rerankers share: from one query with documents to pairs, images refused, scores that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import Pair, PairReranker
from chamfer.core.types import F32, Document, Query

# A tokenizer reads its text to the end before it cuts. Beyond so many characters a token of the limit nothing of any
# language is left to be read, and megabytes cost seconds.
CHARACTERS_PER_TOKEN = 64


def scores_of(reranker: PairReranker, query: Query, documents: Sequence[Document]) -> F32:
    """What `Reranker.score` promises, by `score_pairs`. Raises Internal for a score that is not finite."""
    scores = reranker.score_pairs([(query, document) for document in documents])
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise Internal(
            f"reranker {reranker.name} gave the score {scores[place]} for document {documents[place].doc_id!r}"
        )
    return scores


def refuse_images(name: str, pairs: Sequence[Pair]) -> None:
    """InvalidInput for a pair that a reader of text cannot judge. An image beside a text is not looked at."""
    for query, document in pairs:
        if query.image is not None:
            raise InvalidInput(f"reranker {name} reads text only, the query has an image")
        if document.image is not None and not document.content:
            raise InvalidInput(f"reranker {name} reads text only, document {document.doc_id!r} is an image")
