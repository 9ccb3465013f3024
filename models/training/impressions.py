"""Impression logs as groups: what was shown for a query, where, and what was clicked; NDJSON or Parquet.

One record an impression:

    {"request_id": "r1", "query": "...", "shown": [{"doc_id": "d7", "rank": 1}, ...], "clicked": ["d7"]}

`shown` entries may carry `propensity`, the chance in (0, 1] that the place was looked at, where it was measured (swaps,
randomised order); `source` and `split` (train, dev) of a record are optional. Ranks count from 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chamfer.errors import InvalidInput, NotFound
from models.training.groups import Group

RANK, PROPENSITY = "rank", "propensity"


def read_impressions(path: Path, eta: float) -> list[Group]:
    """The impressions of a log as groups in the order shown: labels are clicks, columns `rank` and `propensity`.

    Where no propensity was logged it is rank ** -eta (position-based examination). NotFound without the file;
    InvalidInput names the record that lacks something or whose click was not shown. Empty ones are left out.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist; expected impressions as NDJSON or Parquet")
    records = _parquet(path) if path.suffix == ".parquet" else _ndjson(path)
    return [_group(record, number, path, eta) for number, record in enumerate(records, 1) if record.get("shown")]


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _ndjson(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InvalidInput(f"{path} line {number} is not a JSON object; expected one impression a line")
        found.append(record)
    return found


def _group(record: Mapping[str, Any], number: int, path: Path, eta: float) -> Group:
    where = f"{path} record {number}"
    if missing := {"request_id", "query", "shown", "clicked"} - record.keys():
        raise InvalidInput(f"{where} lacks {sorted(missing)}; expected request_id, query, shown, clicked")
    try:
        shown = sorted(record["shown"], key=lambda entry: int(entry["rank"]))
        doc_ids = [str(entry["doc_id"]) for entry in shown]
        ranks = [int(entry["rank"]) for entry in shown]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: entries of shown need doc_id and rank ({error!r})") from None
    clicked = set(record["clicked"] or ())
    if strangers := clicked - set(doc_ids):
        raise InvalidInput(f"{where} has clicks on {sorted(strangers)}, which were not shown")
    if min(ranks) < 1:
        raise InvalidInput(f"{where} has the rank {min(ranks)}; ranks count from 1")
    given = [entry.get("propensity") for entry in shown]
    propensities = [
        float(rank) ** -eta if value is None else float(value) for rank, value in zip(ranks, given, strict=True)
    ]
    if not all(0 < value <= 1 for value in propensities):
        raise InvalidInput(f"{where} has propensities {propensities}; expected numbers in (0, 1]")
    return Group(
        query_id=str(record["request_id"]),
        query=str(record["query"]),
        doc_ids=doc_ids,
        labels=[float(doc_id in clicked) for doc_id in doc_ids],
        source=record.get("source") or "",
        split=record.get("split") or "train",
        teachers={RANK: [float(rank) for rank in ranks], PROPENSITY: propensities},
    )
