"""`chamfer plan` as a subprocess; the settings it writes build a collection that can be searched."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support_cli import chamfer
from support_encoders import HashEncoder, make_documents

from chamfer.cli import plan, plan_report
from chamfer.core.errors import InvalidInput
from chamfer.core.types import Query, VectorKind

WORDS = [
    *("fox", "crow", "king", "apple", "tree", "cheese", "tail", "trap"),
    *("golden", "sons", "river", "stone", "bread", "wolf", "moon"),
]
CORPUS = [
    {"_id": f"d{i}", "title": WORDS[i % 15], "text": f"The {WORDS[i % 15]} and the {WORDS[(i * 7 + i // 15) % 15]}."}
    for i in range(60)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan")
    (directory / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in CORPUS))
    queries = [{"_id": f"q{i}", "text": f"where is the {word}?"} for i, word in enumerate(WORDS)]
    (directory / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    (directory / "qrels").mkdir()
    qrels = "".join(f"q{i}\td{i}\t1\n" for i in range(15))
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return directory


@pytest.fixture(scope="module")
def planned(folder: Path) -> Path:
    done = chamfer("plan", str(folder), "--out", str(folder / "plan"), "--floor", "0.9")
    assert done.returncode == 0, done.stderr
    assert "Recommended: " in done.stdout
    assert "Measured on 60 of 60 documents with 15 queries" in done.stdout
    for name in ("exact MaxSim", "dense", "lexical", "fde 10240 centred", "lemur 1280", "dense + fde 2560"):
        assert name in done.stdout
    assert "encode" in done.stderr
    assert "measure" in done.stderr
    return folder / "plan"


def test_plan_writes_a_page_a_plot_and_json(planned: Path) -> None:
    assert (planned / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (planned / "plan.html").read_text()
    assert "data:image/png;base64," in page
    assert "fde 2560 unfilled" in page
    record = json.loads((planned / "plan.json").read_text())
    exact = record["rows"][0]
    assert (exact["source"], exact["R10@10"]) == ("exact MaxSim", "1.000")
    assert float(exact["nDCG@10"]) > 0.3
    assert {o["source"] for o in record["options"]} >= {"exact MaxSim", "dense", "fde 2560", "lemur 512"}


def test_the_recommended_settings_build_a_searchable_collection(planned: Path, tmp_path: Path) -> None:
    done = chamfer(
        *("build", str(planned.parent), "--out", str(tmp_path / "c"), "--config", str(planned / "plan.toml"))
    )
    assert done.returncode == 0, done.stderr
    search = chamfer(
        *("search", str(tmp_path / "c"), "where is the fox?", "--plan", "late", "--json"),
        *("--config", str(planned / "plan.toml")),
    )
    assert search.returncode == 0, search.stderr
    assert json.loads(search.stdout)[0]["title"] == "fox"


def test_budgets_that_no_source_meets_exit_with_status_one_and_write_no_settings(folder: Path, tmp_path: Path) -> None:
    done = chamfer(
        *("plan", str(folder / "corpus.jsonl"), "--out", str(tmp_path), "--sample", "12", "--budget-bytes", "3")
    )
    assert done.returncode == 1
    assert "No recommendation: nothing is within the budgets" in done.stdout
    assert "Measured on 12 of 60 documents with 12 queries" in done.stdout
    assert not (tmp_path / "plan.toml").exists()
    assert (tmp_path / "plan.html").exists()


def test_an_empty_corpus_and_invalid_options_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    (tmp_path / "void.jsonl").write_text(json.dumps({"_id": "a", "text": " "}) + "\n")
    for words, message in [
        ((str(tmp_path),), "contains no document"),
        ((str(tmp_path / "void.jsonl"),), "no document of the sample has any text"),
        ((str(tmp_path), "--budget-ms", "0"), "--budget-ms is 0"),
        ((str(tmp_path), "--floor", "1.5"), "0 < floor <= 1"),
        ((str(tmp_path / "nowhere"),), "does not exist"),
    ]:
        done = chamfer("plan", *words, "--out", str(tmp_path / "out"))
        assert done.returncode == 2, done.stderr
        assert message in " ".join(done.stderr.split())


def test_an_encoder_without_token_vectors_is_rejected() -> None:
    encoder = HashEncoder()
    del encoder.spec.dims[VectorKind.TOKENS]
    with pytest.raises(InvalidInput, match="needs token vectors"):
        plan._encode(encoder, make_documents(3), [Query("q", "w1")])


def test_the_sample_is_drawn_uniformly_from_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"_id": str(i), "text": "x"}) + "\n" for i in range(400)))
    drawn, n = plan.draw_sample(str(path), 100)
    ids = {int(document.doc_id) for document in drawn}
    assert (n, len(ids)) == (400, 100)
    assert 150 < sum(ids) / 100 < 250
    assert plan.draw_sample(str(path), 1000)[1] == 400


def test_settings_are_written_as_toml() -> None:
    tree = {
        "models": {"encoder": 'a"b'},
        "build": {"channels": ["x", "y"], "floor": {"recall": 0.5, "on": True}},
        "e": {},
    }
    assert tomllib.loads(plan_report.toml(tree)) == {k: v for k, v in tree.items() if k != "e"}
