"""The commands `chamfer mine`, `selections` and `inspect --encoder`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from chamfer.cli import app as commands
from chamfer.cli import register_commands
from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.service.runtime.selection_log import RotatingFiles, query_digest

TEXTS = {
    f"d{n}": f"the {animal} on the hill lost a bone" for n, animal in enumerate(("fox", "crow", "ant", "wolf", "dog"))
}


@pytest.fixture
def app() -> typer.Typer:
    register_commands()
    return commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "the fox on the hill"}) + "\n")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in TEXTS.items()))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    documents = [Document(doc_id, text) for doc_id, text in TEXTS.items()]
    build(documents, tmp_path / "c", encoder=None, config=BuildConfig(channels=("lexical",)))
    return tmp_path


def test_mine_writes_three_files_and_counts_fates(app: typer.Typer, folder: Path) -> None:
    out = folder / "mined.parquet"
    words = ["mine", str(folder / "c"), str(folder), "--out", str(out), "--ranks", "2-3", "--depth", "5", "--json"]
    done = CliRunner().invoke(app, [*words, "--consistency", "5"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["groups"] == 1
    assert report["fates"] == {"kept": 2, "rank": 2, "positive": 1}
    [group] = pq.read_table(folder / "mined.groups.parquet").to_pylist()
    assert group["source"] == folder.name
    assert group["doc_ids"][0] == "d0"
    assert pq.read_table(folder / "mined.documents.parquet").num_rows == 5


def test_malformed_ranks_are_rejected(app: typer.Typer, folder: Path) -> None:
    words = ["mine", str(folder / "c"), str(folder), "--out", str(folder / "x.parquet"), "--ranks", "5"]
    with pytest.raises(InvalidInput, match="FIRST-LAST"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_selections_writes_groups_and_their_documents(app: typer.Typer, folder: Path) -> None:
    log = folder / "log"
    files = RotatingFiles(log, 1 << 20)
    search = {
        "event": "search",
        "request_id": "r",
        "collection": "tales",
        "snapshot": "s",
        "plan": "fast",
        "time": 1.0,
        "query_digest": query_digest("the fox on the hill"),
        "doc_ids": ["d0", "d3", "gone"],
        "shown": 2,
        "features": {"lexical.score": [2.0, 1.0, None]},
    }
    click = {"event": "click", "request_id": "r", "collection": "tales", "clicks": [{"doc_id": "d3", "rank": 2}]}
    for record in (search, click):
        files.append(json.dumps(record).encode() + b"\n")
    files.close()
    out = folder / "shown.parquet"
    words = ["selections", str(log), str(folder / "c"), "--out", str(out), "--queries", str(folder)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    [row] = pq.read_table(out).to_pylist()
    assert row["query"] == "the fox on the hill"
    assert row["labels"] == [0.0, 1.0, 0.0]
    assert row["shown"] == [1.0, 1.0, 0.0]
    assert row["fates"] == ["shown", "positive", "retrieved"]
    assert pq.read_table(folder / "shown.documents.parquet")["doc_id"].to_pylist() == ["d0", "d3"]
    with pytest.raises(InvalidInput, match=r"selection_log\.text"):
        CliRunner().invoke(app, words[:5], catch_exceptions=False)


def test_inspect_prints_the_geometry_of_an_encoder(app: typer.Typer, folder: Path) -> None:
    words = ["inspect", "--encoder", "mini", "--corpus", str(folder), "--split", "train", "--json"]
    facts = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert facts["dense"]["dims"] == 384
    assert facts["tokens"]["dims"] == 128
    assert facts["dense"]["mean_cosine"] > 0.3  # five sentences that differ in one word
    assert 0 < facts["dense"]["alignment"] < 1
    assert "FDE cell" in facts["tokens"]["meaning"]


def test_inspect_without_a_collection_or_an_encoder_is_rejected(app: typer.Typer) -> None:
    with pytest.raises(InvalidInput, match="--encoder"):
        CliRunner().invoke(app, ["inspect"], catch_exceptions=False)
