"""Logs of other services as training groups (for its own log see tests/service/runtime/test_selection_log.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.mining import pool_tables
from chamfer.mining.click_logs import pools_of, read_click_log
from chamfer.models.training.data.groups import read_groups
from chamfer.models.training.data.parquet import write_table

RECORD = {
    "request_id": "r",
    "query": "q",
    "shown": [{"doc_id": "b", "rank": 2}, {"doc_id": "a", "rank": 1, "propensity": 0.8}],
    "clicked": ["b"],
    "split": "dev",
}


def test_impressions_of_either_format_become_groups_in_the_order_shown(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text(
        json.dumps(RECORD) + "\n\n" + json.dumps({**RECORD, "shown": [], "clicked": []}) + "\n"
    )
    pq.write_table(pa.Table.from_pylist([RECORD]), tmp_path / "log.parquet")
    for name in ("log.ndjson", "log.parquet"):
        impressions, unreadable = read_click_log(tmp_path / name)
        assert unreadable == 0
        write_table(tmp_path / "groups.parquet", pool_tables.table_of(pools_of(impressions)))
        (group,) = read_groups(tmp_path / "groups.parquet")
        assert list(group.doc_ids) == ["a", "b"]
        assert list(group.labels) == [0.0, 1.0]
        assert group.split == "dev"
        np.testing.assert_allclose(group.teachers["propensity"], [0.8, np.nan])
        assert list(group.teachers["rank"]) == [1, 2]
        assert list(group.teachers["shown"]) == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicked": ["z"]}, r"line 1: has clicks on \['z'\], which were not shown"),
        ({"shown": [{"doc_id": "b"}]}, "entries of shown need doc_id and rank"),
        ({"shown": [{"doc_id": "b", "rank": 0}]}, "ranks count from 1"),
        ({"event": "search"}, "lacks 'collection'"),
    ],
)
def test_an_invalid_record_is_reported_with_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "log.ndjson").write_text(json.dumps({**RECORD, **change}))
    with pytest.raises(InvalidInput, match=message):
        read_click_log(tmp_path / "log.ndjson")


def test_a_missing_log_and_a_line_that_is_not_an_object_are_reported(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="expected a log"):
        read_click_log(tmp_path / "log.ndjson")
    (tmp_path / "log.ndjson").write_text(json.dumps(RECORD) + "\n[1]\n")
    with pytest.raises(InvalidInput, match="line 2: not a JSON object"):
        read_click_log(tmp_path / "log.ndjson")


def test_all_impressions_of_a_held_out_query_are_held_out(tmp_path: Path) -> None:
    records = [{**RECORD, "request_id": str(n), "query": f"query {n % 500}"} for n in range(1000)]
    (tmp_path / "log.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))
    impressions, _ = read_click_log(tmp_path / "log.ndjson")
    held = [impression.is_held_out(0.2) for impression in impressions]
    assert held[:500] == held[500:]
    assert 70 < sum(held[:500]) < 130
