"""The selection log: what is recorded, its limits, and that its failures do not affect requests."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_service import SEARCH, fables_app, with_fables

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import Query
from chamfer.mining.click_logs import pools_of, read_click_log
from chamfer.service.runtime import selection_log
from chamfer.service.runtime.selection_log import RotatingFiles, SelectionLog, SelectionLogConfig, query_digest
from chamfer.service.runtime.telemetry import Telemetry

QUERY = "Why did the fox lose his tail?"
CLICKS = "/v1/collections/fables/clicks"


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(directory.iterdir()) for line in path.read_text().splitlines()]


async def search(client: Any, **body: Any) -> dict[str, Any]:
    response = await client.post(SEARCH, json={"query": QUERY, "k": 3, **body})
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


async def click(client: Any, answer: dict[str, Any], rank: int = 1) -> Any:
    hit = {"doc_id": answer["hits"][rank - 1]["doc_id"], "rank": rank}
    return await client.post(CLICKS, json={"request_id": answer["request_id"], "clicks": [hit]})


def recorded(tmp_path: Path, check: Callable[[Any], Any], **config: Any) -> list[dict[str, Any]]:
    """The records that the service has written when the test has stopped it."""
    with_fables(check, selection_log=SelectionLogConfig(directory=tmp_path, **config))
    return records(tmp_path)


def test_a_search_is_recorded_with_its_pool_and_without_its_text(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        plain = await search(client)
        explained = await search(client, explain=True, k=8)
        assert [h["doc_id"] for h in plain["hits"]] == [h["doc_id"] for h in explained["hits"]][:3]
        stages = {s["name"]: s for s in explained["hits"][0]["explanation"]["stages"]}
        kept.update(hits=explained["hits"], dense=stages["dense"])

    kept: dict[str, Any] = {}
    first, second = recorded(tmp_path, check)
    assert first["doc_ids"] == [hit["doc_id"] for hit in kept["hits"]]
    assert first["shown"] == 3
    assert second["shown"] == 8
    assert first["features"]["dense.score"][0] == kept["dense"]["score"]
    assert {len(column) for column in first["features"].values()} == {8}
    assert first["query_digest"] == query_digest(QUERY)
    assert "fox" not in json.dumps({**first, "doc_ids": []})


def test_the_query_text_is_recorded_if_configured(tmp_path: Path) -> None:
    assert recorded(tmp_path, search, text=True)[0]["query"] == QUERY


def test_clicks_on_shown_documents_are_recorded(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        answer = await search(client)
        response = await click(client, answer, rank=2)
        assert response.status_code == 202
        assert response.json() == {"request_id": answer["request_id"], "accepted": 1}
        wrong = {"request_id": answer["request_id"], "clicks": [{"doc_id": answer["hits"][0]["doc_id"], "rank": 2}]}
        refused = await client.post(CLICKS, json=wrong)
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["pointer"] == "/clicks/0"
        below = {"request_id": answer["request_id"], "clicks": [{"doc_id": "fable-1", "rank": 4}]}
        assert (await client.post(CLICKS, json=below)).status_code == 400

    events = recorded(tmp_path, check)
    assert [event["event"] for event in events] == ["search", "click"]
    assert events[1]["clicks"] == [{"doc_id": events[0]["doc_ids"][1], "rank": 2}]


def test_clicks_on_an_unknown_search_are_refused_with_the_reason(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        body = {"request_id": "unheard-of", "clicks": [{"doc_id": "fable-1", "rank": 1}]}
        response = await client.post(CLICKS, json=body)
        assert response.status_code == 404
        assert "selection_log.sample" in response.json()["detail"]
        elsewhere = await client.post("/v1/collections/none/clicks", json=body)
        assert elsewhere.status_code == 404

    assert recorded(tmp_path, check) == []


def test_nothing_is_recorded_unless_a_directory_is_set() -> None:
    async def check(client: Any) -> None:
        response = await click(client, await search(client))
        assert response.status_code == 404
        assert "selection_log.directory" in response.json()["detail"]

    with_fables(check)


def test_each_search_of_a_batch_has_its_own_record(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        searches = [{"query": QUERY, "k": 2}, {"query": " "}, {"query": "crow", "k": 1}]
        response = await client.post(f"{SEARCH}:batch", json={"searches": searches})
        assert response.json()["failed"] == 1
        hit = response.json()["results"][2]["hits"][0]
        body = {"request_id": f"{response.json()['request_id']}/2", "clicks": [{"doc_id": hit["doc_id"], "rank": 1}]}
        assert (await client.post(CLICKS, json=body)).status_code == 202

    events = recorded(tmp_path, check)
    assert [event["request_id"].rpartition("/")[2] for event in events] == ["0", "2", "2"]


def test_the_share_of_sampled_searches_is_that_of_the_setting() -> None:
    draws = iter(np.linspace(0, 1, 1000, endpoint=False).tolist())
    config = SelectionLogConfig(directory=Path("unused"), sample=0.25, depth=20)
    log = SelectionLog(config, Telemetry(), draw=lambda: next(draws))
    pools = [log.pool_size(5) for _ in range(1000)]
    assert pools.count(20) == 250
    assert pools.count(0) == 750


def test_a_full_disk_fails_no_request_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def check(client: Any) -> None:
        for _ in range(3):
            answer = await search(client)
        assert (await click(client, answer)).status_code == 202
        while True:
            text = (await client.get("/metrics")).text
            if 'chamfer_selection_records_total{outcome="not_written"} 4.0' in text:
                return

    monkeypatch.setattr(selection_log.os, "write", full)
    assert recorded(tmp_path, check) == []


def test_a_directory_that_cannot_be_made_fails_no_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def check(client: Any) -> None:
        assert (await search(client))["hits"]

    with_fables(check, selection_log=SelectionLogConfig(directory=tmp_path / "file" / "log"))


def test_a_slow_disk_drops_records_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    write = os.write

    def slow(descriptor: int, line: bytes) -> int:
        released.wait()
        return write(descriptor, line)

    async def check(client: Any) -> None:
        for _ in range(12):
            await search(client)
        text = (await client.get("/metrics")).text
        dropped = float(text.split('chamfer_selection_records_total{outcome="queue_full"} ')[1].split()[0])
        released.set()
        assert dropped >= 7  # of twelve, four may wait and one is being written

    monkeypatch.setattr(selection_log.os, "write", slow)
    assert len(recorded(tmp_path, check, max_waiting=4)) <= 5


def test_a_partially_written_line_is_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RotatingFiles(tmp_path, 1 << 20)
    files.append(b"whole\n")
    write = os.write
    monkeypatch.setattr(selection_log.os, "write", lambda descriptor, line: write(descriptor, line[:2]))
    with pytest.raises(OSError, match="2 of 5 bytes"):
        files.append(b"half\n")
    monkeypatch.undo()
    files.append(b"after\n")
    files.close()
    [path] = tmp_path.iterdir()
    assert path.read_bytes() == b"whole\nafter\n"


def test_the_directory_stays_below_max_bytes_and_keeps_the_newest_files(tmp_path: Path) -> None:
    most = 1 << 16
    files = RotatingFiles(tmp_path, most)
    for number in range(500):
        files.append(b"%03d" % number + b"x" * 996 + b"\n")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most
    files.close()
    lines = [line[:3] for path in sorted(tmp_path.iterdir()) for line in path.read_bytes().splitlines()]
    assert lines == [b"%03d" % number for number in range(500 - len(lines), 500)]
    assert len(lines) > 40
    with pytest.raises(InvalidInput, match="max_bytes"):
        RotatingFiles(tmp_path, most).append(b"x" * (most // 8 + 1))


def test_clicks_are_accepted_only_for_the_most_recent_searches(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        first, second = await search(client), await search(client)
        assert (await click(client, first)).status_code == 404
        assert (await click(client, second)).status_code == 202

    recorded(tmp_path, check, remember=1)


def test_the_log_is_read_back_as_groups(tmp_path: Path) -> None:
    async def check(client: Any) -> None:
        answer = await search(client, plan={"channels": {"lexical": {}, "dense": {"depth": 4}}})
        await click(client, answer, rank=3)
        await search(client)

    recorded(tmp_path, check)
    with next(iter(tmp_path.iterdir())).open("a") as file:
        file.write('{"event": "search", "requ')  # a partial line, as a crash of the machine may leave it
    impressions, unreadable = read_click_log(tmp_path)
    assert unreadable == 1
    assert [len(impression.clicked) for impression in impressions] == [1, 0]
    assert pools_of(impressions) == []  # digests only, and no queries to match them with
    clicked, other = pools_of(impressions, [Query("q", QUERY)])
    assert clicked.query.text == QUERY
    assert np.flatnonzero(clicked.positive).tolist() == [2]
    assert clicked.features["shown"].tolist() == [1.0] * 3 + [0.0] * (len(clicked) - 3)
    assert np.isnan(clicked.features["dense.rank"]).any()  # found by words alone
    assert clicked.fates[2] == "positive"
    assert other.fates.count("shown") == 3


def test_a_folder_without_a_log_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="contains no selection log"):
        read_click_log(tmp_path)


@pytest.mark.parametrize("wrong", [{"sample": 0.0}, {"sample": 1.5}, {"depth": 0}, {"max_bytes": 1000}])
def test_invalid_selection_log_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"selection_log\."):
        SelectionLogConfig(**wrong)


def test_the_route_is_described() -> None:
    schema = fables_app().openapi()
    assert "post" in schema["paths"]["/v1/collections/{name}/clicks"]
    assert "ClicksBody" in schema["components"]["schemas"]
