"""The pool of a query: the candidates that a plan retrieved, with the rank and score of every stage as features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from chamfer.core.types import F32, Bool, Document, Query
from chamfer.service.search.request import SearchResult


@dataclass(slots=True)
class Pool:
    """A query with n candidates: the retrieved ones in rank order, then positives that were not retrieved.

    positive  bool [n], true for known relevant documents
    features  f32 [n] by name, NaN where a stage did not see the candidate: `rank` and `score` of the whole plan,
              CHANNEL.rank and CHANNEL.score, fuse.score, rescore.score, rerank.score, and those that mining adds
              (chamfer.mining.features)
    fates     one per candidate (chamfer.mining.fates)
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
        return [document for document, positive in zip(self.documents, self.positive, strict=True) if positive]

    def best_positive(self, feature: str) -> float:
        """The highest value of `feature` among the positives; NaN if none of them has a value."""
        values = self.features[feature][self.positive]
        present = values[~np.isnan(values)]
        return float(present.max()) if len(present) else float("nan")


def pool_of(query: Query, result: SearchResult, relevant: Iterable[Document]) -> Pool:
    """The pool of a search that was run with `pool` > 0; `relevant` are the query's positives, retrieved or not."""
    positives = {document.doc_id: document for document in relevant}
    retrieved_ids = {hit.doc_id for hit in result.hits}
    documents = [*(hit.document for hit in result.hits), *(d for i, d in positives.items() if i not in retrieved_ids)]
    n, retrieved = len(documents), len(result.hits)
    columns = {"rank": np.arange(1, retrieved + 1), "score": np.array([hit.score for hit in result.hits])}
    columns |= result.pool.features() if result.pool else {}
    features = {name: np.full(n, np.nan, dtype=np.float32) for name in columns}
    for name, values in columns.items():
        features[name][:retrieved] = values
    return Pool(query, documents, np.array([d.doc_id in positives for d in documents], dtype=bool), features)
