"""The page of the benchmarks agrees with the programs and the stored rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report


def test_the_page_is_what_the_report_writes_from_the_stored_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "save", lambda plot, rows, path: path.exists())  # drawing is slow and not compared
    report.draw()
    written = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert written == committed, "docs/benchmarks.md is stale; run python -m benchmarks.report --draw-only"


def test_an_update_replaces_only_the_rows_that_were_measured() -> None:
    old = {"machine": "a", "command": "x", "rows": [{"what": "one: p50"}, {"what": "two: p50"}]}
    updated = report.updated(old, {"machine": "b", "command": "y", "rows": [{"what": "one: p50", "value": 2}]})
    assert updated["rows"] == [{"what": "two: p50"}, {"what": "one: p50", "value": 2}]
    assert updated["command"] == "x; then y"
