"""A query's pool: what the live plan retrieved for it, and every stage's rank and score as features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chamfer.types import F32, Bool, Document, Hit, Query
from service.stages import features_of


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


def pool_of(query: Query, hits: Sequence[Hit], relevant: Iterable[Document]) -> Pool:
    """The pool of one search, made with `explain`; `relevant` are the query's positives, retrieved or not."""
    positives = {document.doc_id: document for document in relevant}
    found = {hit.doc_id for hit in hits}
    documents = [*(hit.document for hit in hits), *(d for i, d in positives.items() if i not in found)]
    pool = Pool(query, documents, np.array([d.doc_id in positives for d in documents], dtype=bool))
    columns: dict[str, F32] = {}
    for place, hit in enumerate(hits):
        for name, value in _features(hit).items():
            if name not in columns:
                columns[name] = np.full(len(documents), np.nan, dtype=np.float32)
            columns[name][place] = value
    for name in ("rank", "score"):  # also where nothing was retrieved
        columns.setdefault(name, np.full(len(documents), np.nan, dtype=np.float32))
    pool.features = columns
    return pool


def _features(hit: Hit) -> dict[str, float]:
    out = {"rank": float(hit.rank), "score": hit.score}
    return out | features_of(hit.explanation or {"stages": ()})
