"""Converted graphs on disk: read again, never incomplete, and no fault of the disk prevents a start."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chamfer.models.backends.graph_cache import cached_graph


def write(graph: str, folder: Path) -> None:
    (folder / "graph").write_text(graph)


def read(folder: Path) -> str:
    return (folder / "graph").read_text()


def made(calls: list[str]) -> Callable[[], str]:
    def make() -> str:
        calls.append("made")
        return "graph"

    return make


def test_a_graph_is_made_once_and_then_read(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(3):
        assert cached_graph("name", tmp_path / "cache", make=made(calls), write=write, read=read) == "graph"
    assert calls == ["made"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["name"]


def test_without_a_directory_every_start_makes_the_graph(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        assert cached_graph("name", None, make=made(calls), write=write, read=read) == "graph"
    assert len(calls) == 2


def test_a_killed_writer_leaves_no_graph_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from chamfer.models.backends.graph_cache import cached_graph
def write(graph, folder):
    (folder / "graph").write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)
cached_graph("name", Path({str(tmp_path)!r}), make=lambda: "graph", write=write, read=None)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".writing-name-")
    assert cached_graph("other", tmp_path, make=made([]), write=write, read=read) == "graph"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert cached_graph("name", tmp_path, make=made([]), write=write, read=read) == "graph"


def test_a_folder_that_a_running_process_writes_is_left_alone(tmp_path: Path) -> None:
    busy = tmp_path / f".writing-other-{platform.node()}-{os.getppid()}"
    busy.mkdir()
    cached_graph("name", tmp_path, make=made([]), write=write, read=read)
    assert busy.is_dir()


def test_a_folder_that_another_host_writes_is_left_alone_whatever_its_process_number(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    elsewhere = tmp_path / f".writing-other-another-host-{done.pid}"
    here = tmp_path / f".writing-other-{platform.node()}-{done.pid}"
    for folder in (elsewhere, here):
        folder.mkdir()
    cached_graph("name", tmp_path, make=made([]), write=write, read=read)
    assert elsewhere.is_dir()
    assert not here.exists()


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_failing_disk_does_not_prevent_the_start(tmp_path: Path, kind: type[Exception]) -> None:
    def refuse(graph: str, folder: Path) -> None:
        raise kind("no space left on device")

    calls: list[str] = []
    for _ in range(2):
        assert cached_graph("name", tmp_path, make=made(calls), write=refuse, read=read) == "graph"
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["cache", "deep/er/cache"])
def test_a_home_that_is_not_a_directory_does_not_prevent_the_start(tmp_path: Path, below: str) -> None:
    home = tmp_path / "home"
    home.write_text("")
    assert cached_graph("name", home / below, make=made([]), write=write, read=read) == "graph"


def test_a_damaged_graph_is_made_and_written_again(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    assert cached_graph("name", tmp_path, make=made([]), write=write, read=read) == "graph"
    assert read(tmp_path / "name") == "graph"
