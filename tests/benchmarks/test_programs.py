"""All benchmark programs: they find their corpus and report failures, and guards import no experiment."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import benchmarks.__main__ as program
from benchmarks import GUARDS, SUBJECTS, exact, module_of
from benchmarks.harness import demo_corpus

ROOT = Path(__file__).resolve().parents[2]


def source(subject: str) -> Path:
    return ROOT / (module_of(subject).replace(".", "/") + ".py")


def test_the_shipped_corpus_is_where_the_benchmarks_look() -> None:
    assert (demo_corpus() / "corpus.jsonl").is_file()


def test_exact_search_agrees_with_its_peer() -> None:
    overlaps = [row.value for row in exact.dense(500, 1) if row.what.endswith("overlap with faiss")]
    assert len(overlaps) == 2
    assert min(overlaps) > 0.99


def test_exact_maxsim_runs_for_every_storage() -> None:
    assert {"chamfer multivector float32", "chamfer multivector float16"} <= {
        row.what.split(": ")[1].split(" [")[0] for row in exact.maxsim(20, 1)
    }


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_has_a_program(subject: str) -> None:
    assert '__name__ == "__main__"' in source(subject).read_text()


@pytest.mark.parametrize("subject", GUARDS)
def test_a_guard_imports_no_experiment(subject: str) -> None:
    imported = [
        node.module for node in ast.walk(ast.parse(source(subject).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    assert not [name for name in imported if (name or "").startswith("benchmarks.research")]


@pytest.mark.parametrize(("code", "fault"), [("0", ""), ("3", "exit status 1")])
def test_a_failing_benchmark_is_reported(monkeypatch: pytest.MonkeyPatch, code: str, fault: str) -> None:
    monkeypatch.setattr(program, "module_of", lambda _: "timeit")
    options = ["-n1", "-r1", f"import sys; sys.exit({code})" if code != "0" else "pass"]
    assert program.run("any", options, None) == fault


def test_a_benchmark_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "module_of", lambda _: "timeit")
    fault = program.run("any", ["-n1", "-r1", "import time; time.sleep(60)"], 0.5)
    assert "longer" in fault
