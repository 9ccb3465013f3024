"""The command line as a subprocess: its output and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support_cli import chamfer

from chamfer.cli import app, register_commands

CORPUS = [
    {"_id": "fox", "title": "The fox", "text": "The fox lost his tail in a trap.", "metadata": {"year": 1890}},
    {"_id": "crow", "title": "The crow", "text": "A crow dropped a piece of cheese.", "metadata": {"year": 1901}},
    {"_id": "king", "title": "The king", "text": "The king had three sons and a golden apple tree."},
    {"_id": "long", "title": "", "text": "apple " * 400},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    (directory / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in CORPUS))
    (directory / "queries.jsonl").write_text(
        json.dumps({"_id": "q1", "text": "Who lost a tail?"})
        + "\n"
        + json.dumps({"_id": "q2", "text": "cheese"})
        + "\n"
    )
    (directory / "qrels").mkdir()
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tfox\t1\nq2\tcrow\t1\n")
    done = chamfer("build", str(directory), "--out", str(directory / "c"))
    assert done.returncode == 0, done.stderr
    assert "4 documents" in done.stderr
    assert "1 documents are longer than the encoder's limit" in " ".join(done.stderr.split())
    return directory


def test_search_prints_hits_as_json_on_standard_output(folder: Path) -> None:
    done = chamfer("search", str(folder / "c"), "Who lost his tail?", "-k", "1", "--json", "--explain")
    [hit] = json.loads(done.stdout)
    assert hit["doc_id"] == "fox"
    assert hit["metadata"] == {"year": 1890}
    assert {stage["name"] for stage in hit["explanation"]["stages"]} >= {"dense", "lexical"}


def test_search_accepts_a_filter_and_a_plan(folder: Path) -> None:
    condition = '{"field": "year", "gt": 1900}'
    done = chamfer("search", str(folder / "c"), "fox tail", "--filter", condition, "--plan", "best", "--json")
    assert [hit["doc_id"] for hit in json.loads(done.stdout)] == ["crow"]


def test_evaluate_prints_json_and_writes_a_trec_run_per_plan(folder: Path) -> None:
    run = folder / "run.trec"
    done = chamfer(
        *("evaluate", str(folder / "c"), str(folder), "--plan", "fast", "--plan", "balanced", "--json"),
        *("--measures", "nDCG@10 R@100", "--run-out", str(run)),
    )
    results = json.loads(done.stdout)
    assert [r["plan"] for r in results] == ["fast", "balanced"]
    for result in results:
        assert set(result) == {"plan", "measures", "latency_ms", "bytes_per_document"}
        assert set(result["measures"]) == {"nDCG@10", "R@100"}
        assert set(result["latency_ms"]) == {"p50", "p95"}
        assert result["measures"]["R@100"] == 1.0
        assert result["bytes_per_document"] > 0
    first = (folder / "run.trec.balanced").read_text().splitlines()[0].split()
    assert first[:4] == ["q1", "Q0", "fox", "1"]
    assert first[5] == "chamfer-balanced"


def test_evaluate_warns_when_the_qrels_belong_to_another_corpus(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text((folder / "queries.jsonl").read_text())
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tP1\t1\nq2\tfox\t0\n")
    done = chamfer("evaluate", str(folder / "c"), str(tmp_path), "--plan", "fast", "--json")
    assert json.loads(done.stdout)[0]["measures"]["nDCG@10"] == 0.0
    assert "1 of 1 relevant documents are not in the collection" in " ".join(done.stderr.split())


def test_evaluate_prints_a_table_with_a_paired_test(folder: Path) -> None:
    done = chamfer("evaluate", str(folder / "c"), str(folder), "--plan", "fast", "--plan", "best")
    assert "nDCG@10" in done.stdout
    assert "bytes/doc" in done.stdout
    assert "best - fast" in done.stdout


def test_inspect_describes_a_collection_and_verifies_its_files(folder: Path) -> None:
    done = chamfer("inspect", str(folder / "c"), "--verify", "--json")
    facts = json.loads(done.stdout)
    assert facts["documents"] == 4
    assert facts["truncated_documents"] == 1
    assert facts["encoder"] == "mini"
    assert set(facts["bytes"]) == {"dense", "documents", "lexical", "multivector"}


def test_add_delete_and_compact_change_the_search_results(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert chamfer("build", str(folder), "--out", str(path), "--channels", "lexical").returncode == 0
    (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "fox", "text": "The fox kept his brush."}) + "\n")
    refused = chamfer("add", str(path), str(tmp_path / "more.jsonl"))
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    assert chamfer("add", str(path), str(tmp_path / "more.jsonl"), "--replace").returncode == 0
    done = chamfer("delete", str(path), "crow", "nobody")
    assert "not in the collection: nobody" in done.stderr
    assert chamfer("compact", str(path)).returncode == 0
    search = chamfer("search", str(path), "fox crow brush", "--json", "--plan", "fast")
    assert [h["text"] for h in json.loads(search.stdout)] == ["The fox kept his brush."]


def test_invalid_lines_are_skipped_on_request_and_written_to_the_rejects_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"_id": "a", "text": "fine"}\n{"text": "no id"}\n')
    words = ("build", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "c"), "--channels", "lexical")
    stopped = chamfer(*words)
    assert stopped.returncode == 2
    assert "x.jsonl:2" in stopped.stderr
    skipped = chamfer(*words, "--on-error", "skip")
    assert skipped.returncode == 0
    assert "1 lines were skipped" in skipped.stderr
    assert json.loads((tmp_path / "c.rejects.ndjson").read_text())["reason"].startswith("there is no id")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "nowhere", "x"), "holds no collection"),
        (("build", "nowhere", "--out", "o"), "does not exist"),
        (("build", "x", "--out", "o", "--channels", "dens"), "did you mean 'dense'"),
        (("build", "x", "--out", "o", "--encoder", "mnii", "--channels", "dense"), "did you mean 'mini'"),
        (("serve",), "nothing to serve"),
        (("search", "nowhere", "x", "--filter", "{"), "--filter is not valid JSON"),
    ],
)
def test_invalid_input_exits_with_status_two_and_no_traceback(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    made = [str(tmp_path / w) if w in ("nowhere", "o") else w for w in words]
    done = chamfer(*made)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_environment_variable_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    done = chamfer("search", str(tmp_path), "x", CHAMFER_MODEL__ENCODER="mini")
    assert done.returncode == 2
    assert "did you mean 'models'" in done.stderr


def test_each_command_is_defined_in_the_file_of_its_name() -> None:
    register_commands()
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__module__ == f"chamfer.cli.{command.name}"
    assert [group.name for group in app.registered_groups] == ["doctor"]


def test_the_help_lists_every_command_once() -> None:
    register_commands()
    register_commands()
    names = [str(command.name) for command in app.registered_commands]
    assert len(names) == len(set(names))
    listed = chamfer("--help").stdout
    assert all(name in listed for name in names if name != "health")


def test_the_version_is_printed() -> None:
    assert chamfer("--version").stdout.strip() == "0.1.0"


def test_the_readme_example_builds_opens_and_searches(folder: Path, tmp_path: Path) -> None:
    import chamfer as package

    searcher = package.build(str(folder / "corpus.jsonl"), tmp_path / "c")
    hits = searcher.search("Who lost his tail?", k=2, plan="best")
    assert hits[0].doc_id == "fox"
    assert hits[0].document.title == "The fox"
    assert hits[0].rank == 1
    searcher.close()
    with package.open(tmp_path / "c") as again:
        assert again.search("Who lost his tail?", k=2, plan="best") == hits
        custom = {"channels": {"lexical": {"depth": 5}}}
        assert [h.doc_id for h in again.search("cheese", plan=custom)] == ["crow"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"_id": "a", "text": "x"}\nnot JSON\n')
    options = ("--channels", "lexical", "--on-error", "skip", "--rejects", "/dev/full")
    done = chamfer("build", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "c"), *options)
    assert done.returncode == 1
    assert "No space left on device; finished work is kept" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
