"""The service's selection log as training groups: who was retrieved, shown and clicked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.errors import NotFound
from chamfer.mining.filters import POSITIVE
from chamfer.mining.pool import Pool
from chamfer.types import F32, Document, Query
from service.selection_log import SUFFIX, query_digest


@dataclass(slots=True)
class Impression:
    """One recorded search: its pool in rank order, how many of it were shown, and which were clicked.

    features are lists aligned with doc_ids, NaN where a stage did not see the document; query is empty where the log
    keeps no text.
    """

    request_id: str
    collection: str
    query: str
    query_digest: str
    doc_ids: list[str]
    shown: int
    features: dict[str, F32]
    clicked: set[str] = field(default_factory=set)

    def pool(self, query: str) -> Pool:
        """As a training group: clicked documents are positive; `shown` is 1 or 0; fates are clicked ones apart."""
        n = len(self.doc_ids)
        clicked = np.array([doc_id in self.clicked for doc_id in self.doc_ids], dtype=bool)
        shown = np.arange(n) < self.shown
        features = {"rank": np.arange(1, n + 1, dtype=np.float32), "shown": shown.astype(np.float32), **self.features}
        fates = [POSITIVE if c else "shown" if s else "retrieved" for c, s in zip(clicked, shown, strict=True)]
        return Pool(Query(self.request_id, query), [Document(i) for i in self.doc_ids], clicked, features, fates)


def read_selections(directory: Path) -> tuple[list[Impression], int]:
    """(impressions in the order of the log, lines that could not be read). NotFound for a folder without a log.

    A request_id that comes again is another impression; clicks belong to the last one of their request_id.
    """
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    if not paths:
        raise NotFound(
            f"{directory} holds no selection log (*{SUFFIX}); service.selection_log.directory says where it is"
        )
    impressions: list[Impression] = []
    latest: dict[tuple[str, str], Impression] = {}
    unreadable = 0
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                _take(json.loads(line), impressions, latest)
            except (ValueError, KeyError, TypeError):
                unreadable += 1
    return impressions, unreadable


def pools_of(impressions: Sequence[Impression], queries: Sequence[Query] = ()) -> list[Pool]:
    """The impressions whose query is known: kept in the log, or found by digest among `queries`."""
    known = {query_digest(query.text): query.text for query in queries}
    texts = [impression.query or known.get(impression.query_digest, "") for impression in impressions]
    return [i.pool(text) for i, text in zip(impressions, texts, strict=True) if text.strip() and i.doc_ids]


def _take(record: Mapping[str, Any], impressions: list[Impression], latest: dict[tuple[str, str], Impression]) -> None:
    key = (str(record["collection"]), str(record["request_id"]))
    if record["event"] == "click":
        if key in latest:
            latest[key].clicked |= {str(click["doc_id"]) for click in record["clicks"]}
        return
    latest[key] = Impression(
        request_id=key[1],
        collection=key[0],
        query=str(record.get("query", "")),
        query_digest=str(record["query_digest"]),
        doc_ids=[str(doc_id) for doc_id in record["doc_ids"]],
        shown=int(record["shown"]),
        features={name: np.array(values, dtype=np.float32) for name, values in record["features"].items()},
    )
    impressions.append(latest[key])
