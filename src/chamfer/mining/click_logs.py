"""Reads logs of retrieved, shown and clicked documents, of this service or another, as pools for training.

The service's own log is a directory (chamfer.service.runtime.selection_log). The log of another service is an NDJSON or
Parquet file with one impression per record:

    {"request_id": "r1", "query": "...", "shown": [{"doc_id": "d7", "rank": 1}, ...], "clicked": ["d7"]}

An entry of `shown` may have a `propensity`, the measured probability in (0, 1] that its rank was examined (from swaps
or a randomised order). `source` and `split` (train, dev) of a record are optional. Ranks count from 1.
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
from chamfer.mining.fates import POSITIVE
from chamfer.mining.pool import Pool
from chamfer.service.runtime.selection_log import SUFFIX, query_digest


@dataclass(slots=True)
class Impression:
    """A recorded search: its pool in rank order, the number of documents shown, and those clicked.

    features are aligned with doc_ids, NaN where a stage did not see the document; query is empty if the log holds only
    its digest.
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
        """The impression as a pool: clicked documents are positive; feature `shown` is 1 or 0; fates tell both."""
        n = len(self.doc_ids)
        clicked = np.array([doc_id in self.clicked for doc_id in self.doc_ids], dtype=bool)
        shown = np.arange(n) < self.shown
        features = {"rank": np.arange(1, n + 1, dtype=np.float32), "shown": shown.astype(np.float32), **self.features}
        fates = [POSITIVE if c else "shown" if s else "retrieved" for c, s in zip(clicked, shown, strict=True)]
        documents = [Document(doc_id) for doc_id in self.doc_ids]
        return Pool(Query(self.request_id, query), documents, clicked, features, fates, self.source, self.split)

    def is_held_out(self, share: float) -> bool:
        """Whether its query belongs to the held-out `share` of all queries; all impressions of a query agree."""
        digest = blake2b((self.query_digest or self.query).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64


def read_click_log(source: Path) -> tuple[list[Impression], int]:
    """(impressions in log order, number of unreadable lines) of a directory or a file.

    In a directory unreadable lines are skipped and counted, since the service may have died while writing one; in a
    file the first one raises InvalidInput. A repeated request_id is another impression; clicks belong to the latest
    impression of their request_id. Raises NotFound if there is no log.
    """
    paths = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
    if not paths:
        raise NotFound(
            f"{source} contains no selection log (*{SUFFIX}); service.selection_log.directory sets where it is written"
        )
    impressions: list[Impression] = []
    latest: dict[tuple[str, str], Impression] = {}
    unreadable = 0
    for path in paths:
        for location, record in _records(path):
            try:
                _add_record(record, impressions, latest)
            except (InvalidInput, ValueError, KeyError, TypeError) as error:
                if not source.is_dir():
                    raise InvalidInput(f"{location}: {_reason(error)}") from None
                unreadable += 1
    return impressions, unreadable


def pools_of(impressions: Sequence[Impression], queries: Sequence[Query] = ()) -> list[Pool]:
    """Pools of the impressions whose query text is known: from the log, or by its digest among `queries`."""
    text_of = {query_digest(query.text): query.text for query in queries}
    texts = [impression.query or text_of.get(impression.query_digest, "") for impression in impressions]
    return [i.pool(text) for i, text in zip(impressions, texts, strict=True) if text.strip() and i.doc_ids]


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, record) of each record of a file; a line that is not valid JSON is yielded as bytes."""
    if not path.is_file():
        raise NotFound(
            f"{path} does not exist; expected a log: a directory, or a file of impressions (NDJSON or Parquet)"
        )
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


def _add_record(record: Any, impressions: list[Impression], latest: dict[tuple[str, str], Impression]) -> None:
    if not isinstance(record, dict):
        raise InvalidInput("not a JSON object; expected one record per line")
    if record.get("event") == "click":
        if impression := latest.get((str(record["collection"]), str(record["request_id"]))):
            impression.clicked |= {str(click["doc_id"]) for click in record["clicks"]}
        return
    impression = _own_impression(record) if "event" in record else _foreign_impression(record)
    latest[impression.collection, impression.request_id] = impression
    impressions.append(impression)


def _own_impression(record: Mapping[str, Any]) -> Impression:
    """A search event of this service's log."""
    return Impression(
        request_id=str(record["request_id"]),
        collection=str(record["collection"]),
        query=str(record.get("query", "")),
        query_digest=str(record["query_digest"]),
        doc_ids=[str(doc_id) for doc_id in record["doc_ids"]],
        shown=int(record["shown"]),
        features={name: np.array(values, dtype=np.float32) for name, values in record["features"].items()},
    )


def _foreign_impression(record: Mapping[str, Any]) -> Impression:
    """A record of another service's log."""
    if missing := {"request_id", "query", "shown", "clicked"} - record.keys():
        raise InvalidInput(f"lacks {sorted(missing)}; expected request_id, query, shown, clicked")
    try:
        entries = sorted(record["shown"] or (), key=lambda entry: int(entry["rank"]))
        ranks = [int(entry["rank"]) for entry in entries]
        doc_ids = [str(entry["doc_id"]) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"entries of shown need doc_id and rank ({error!r})") from None
    clicked = {str(doc_id) for doc_id in record["clicked"] or ()}
    if not_shown := clicked - set(doc_ids):
        raise InvalidInput(f"has clicks on {sorted(not_shown)}, which were not shown")
    if ranks and ranks[0] < 1:
        raise InvalidInput(f"has the rank {ranks[0]}; ranks count from 1")
    features = {"rank": np.array(ranks, dtype=np.float32)}
    if any(entry.get("propensity") is not None for entry in entries):
        propensities = [entry.get("propensity") for entry in entries]
        features["propensity"] = np.array([np.nan if p is None else p for p in propensities], dtype=np.float32)
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


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
