"""Logs of what was retrieved, shown and clicked, as training groups: the service's own, and those of others.

The service's log is a directory (service.selection_log). A log of another service is a file, NDJSON or Parquet, with an
impression a record:

    {"request_id": "r1", "query": "...", "shown": [{"doc_id": "d7", "rank": 1}, ...], "clicked": ["d7"]}

`shown` entries may carry `propensity`, the chance in (0, 1] that the place was looked at, where it was measured (swaps,
randomised order); `source` and `split` (train, dev) of a record are optional. Ranks count from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import F32, Document, Query
from chamfer.mining.negative_filters import POSITIVE
from chamfer.mining.pool import Pool
from chamfer.service.runtime.selection_log import SUFFIX, query_digest


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
    source: str = ""
    split: str = "train"

    def pool(self, query: str) -> Pool:
        """As a training group: clicked documents are positive; `shown` is 1 or 0; fates are clicked ones apart."""
        n = len(self.doc_ids)
        clicked = np.array([doc_id in self.clicked for doc_id in self.doc_ids], dtype=bool)
        shown = np.arange(n) < self.shown
        features = {"rank": np.arange(1, n + 1, dtype=np.float32), "shown": shown.astype(np.float32), **self.features}
        fates = [POSITIVE if c else "shown" if s else "retrieved" for c, s in zip(clicked, shown, strict=True)]
        documents = [Document(doc_id) for doc_id in self.doc_ids]
        return Pool(Query(self.request_id, query), documents, clicked, features, fates, self.source, self.split)

    def is_held_out(self, share: float) -> bool:
        """Whether it is among `share` of all queries: all impressions of one query are, or none."""
        digest = blake2b((self.query_digest or self.query).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64


def read_selections(source: Path) -> tuple[list[Impression], int]:
    """(impressions in the order of the log, lines that could not be read) of a directory or a file.

    Of a directory, which a service was writing when it died, lines that cannot be read are counted; of a file the first
    one is InvalidInput. A request_id that comes again is another impression; clicks belong to the last one of their
    request_id. NotFound where there is no log.
    """
    paths = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
    if not paths:
        raise NotFound(f"{source} holds no selection log (*{SUFFIX}); service.selection_log.directory says where it is")
    impressions: list[Impression] = []
    latest: dict[tuple[str, str], Impression] = {}
    unreadable = 0
    for path in paths:
        for where, record in _records(path):
            try:
                _take(record, impressions, latest)
            except (InvalidInput, ValueError, KeyError, TypeError) as error:
                if not source.is_dir():
                    raise InvalidInput(f"{where}: {_said(error)}") from None
                unreadable += 1
    return impressions, unreadable


def pools_of(impressions: Sequence[Impression], queries: Sequence[Query] = ()) -> list[Pool]:
    """The impressions whose query is known: kept in the log, or found by digest among `queries`."""
    known = {query_digest(query.text): query.text for query in queries}
    texts = [impression.query or known.get(impression.query_digest, "") for impression in impressions]
    return [i.pool(text) for i, text in zip(impressions, texts, strict=True) if text.strip() and i.doc_ids]


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, record) of a file; what is no JSON comes as text."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist; expected a log: a directory, or impressions as NDJSON or Parquet")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from ((f"{path} record {n}", row) for n, row in enumerate(pq.read_table(path).to_pylist(), 1))
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except ValueError:
                yield f"{path} line {number}", line


def _take(record: Any, impressions: list[Impression], latest: dict[tuple[str, str], Impression]) -> None:
    if not isinstance(record, dict):
        raise InvalidInput("not a JSON object; expected one record a line")
    if record.get("event") == "click":
        if found := latest.get((str(record["collection"]), str(record["request_id"]))):
            found.clicked |= {str(click["doc_id"]) for click in record["clicks"]}
        return
    own = _searched(record) if "event" in record else _shown(record)
    latest[own.collection, own.request_id] = own
    impressions.append(own)


def _searched(record: Mapping[str, Any]) -> Impression:
    """A search that the service wrote."""
    return Impression(
        request_id=str(record["request_id"]),
        collection=str(record["collection"]),
        query=str(record.get("query", "")),
        query_digest=str(record["query_digest"]),
        doc_ids=[str(doc_id) for doc_id in record["doc_ids"]],
        shown=int(record["shown"]),
        features={name: np.array(values, dtype=np.float32) for name, values in record["features"].items()},
    )


def _shown(record: Mapping[str, Any]) -> Impression:
    """An impression of another service."""
    if missing := {"request_id", "query", "shown", "clicked"} - record.keys():
        raise InvalidInput(f"lacks {sorted(missing)}; expected request_id, query, shown, clicked")
    try:
        entries = sorted(record["shown"] or (), key=lambda entry: int(entry["rank"]))
        ranks = [int(entry["rank"]) for entry in entries]
        doc_ids = [str(entry["doc_id"]) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"entries of shown need doc_id and rank ({error!r})") from None
    clicked = {str(doc_id) for doc_id in record["clicked"] or ()}
    if strangers := clicked - set(doc_ids):
        raise InvalidInput(f"has clicks on {sorted(strangers)}, which were not shown")
    if ranks and ranks[0] < 1:
        raise InvalidInput(f"has the rank {ranks[0]}; ranks count from 1")
    features = {"rank": np.array(ranks, dtype=np.float32)}
    if any(entry.get("propensity") is not None for entry in entries):
        given = [entry.get("propensity") for entry in entries]
        features["propensity"] = np.array([np.nan if p is None else p for p in given], dtype=np.float32)
    return Impression(
        request_id=str(record["request_id"]),
        collection="",
        query=str(record["query"]),
        query_digest="",
        doc_ids=doc_ids,
        shown=len(doc_ids),
        features=features,
        clicked=clicked,
        source=record.get("source") or "",
        split=record.get("split") or "train",
    )


def _said(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
