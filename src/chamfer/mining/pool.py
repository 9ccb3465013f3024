"""A query's pool: what the live plan retrieved for it, and every stage's rank and score as features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from chamfer.core.types import F32, Bool, Document, Query
from chamfer.service.search.request import SearchResult


@dataclass(slots=True)
class Pool:
    """One query with n candidates: those retrieved, in rank order, then positives that were not retrieved.

    features f32 [n] by name, NaN where a stage did not see the candidate: `rank` and `score` of the whole plan,
    CHANNEL.rank and CHANNEL.score, fuse.score, rescore.score, rerank.score, and what mining adds (`job`).
    """

    query: Query
    documents: list[Document]
    positive: Bool
    features: dict[str, F32] = field(default_factory=dict)
    fates: list[str] = field(default_factory=list)
    source: str = ""
    split: str = "train"

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def positives(self) -> list[Document]:
        """The known relevant documents."""
        return [document for document, own in zip(self.documents, self.positive, strict=True) if own]

    def best_positive(self, feature: str) -> float:
        """The highest value that a positive has in `feature`; NaN if none has any."""
        values = self.features[feature][self.positive]
        found = values[~np.isnan(values)]
        return float(found.max()) if len(found) else float("nan")


def pool_of(query: Query, result: SearchResult, relevant: Iterable[Document]) -> Pool:
    """The pool of one search, whose result has one; `relevant` are the query's positives, retrieved or not."""
    positives = {document.doc_id: document for document in relevant}
    found = {hit.doc_id for hit in result.hits}
    documents = [*(hit.document for hit in result.hits), *(d for i, d in positives.items() if i not in found)]
    n, retrieved = len(documents), len(result.hits)
    columns = {"rank": np.arange(1, retrieved + 1), "score": np.array([hit.score for hit in result.hits])}
    columns |= result.pool.features() if result.pool else {}
    features = {name: np.full(n, np.nan, dtype=np.float32) for name in columns}
    for name, values in columns.items():
        features[name][:retrieved] = values
    return Pool(query, documents, np.array([d.doc_id in positives for d in documents], dtype=bool), features)
