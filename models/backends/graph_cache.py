"""Converted graphs on disk, one folder each, named by the fingerprint of what was converted.

The cache is optional: a fault of its directory costs the time of a conversion and never prevents a start.
A folder appears under its name by one rename, so a process killed while writing leaves only a `.writing-*` folder,
which the next writer on the same host removes. Hosts and containers may share a cache directory: process numbers mean
nothing between them, so that the names of these folders end with host and process.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Graph = TypeVar("Graph")
_WRITING = ".writing-"


def cached_graph(
    name: str,
    cache_dir: Path | None,
    *,
    make: Callable[[], Graph],
    write: Callable[[Graph, Path], object],
    read: Callable[[Path], Graph],
) -> Graph:
    """The graph of this name: read from the cache, or made and then written there if the directory is writable."""
    if cache_dir is None:
        return make()
    folder = cache_dir / name
    try:
        if folder.exists():
            return read(folder)
    except (OSError, RuntimeError):  # unreadable or damaged: OpenVINO raises RuntimeError, files raise OSError
        shutil.rmtree(folder, ignore_errors=True)
    graph = make()
    try:
        _remove_abandoned(cache_dir)
        _write_folder(folder, lambda temporary: write(graph, temporary))
        return read(folder)
    except (OSError, RuntimeError):  # a read-only or full disk; OpenVINO reports both as RuntimeError
        return graph


def _write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    temporary = folder.with_name(f"{_WRITING}{folder.name}-{_host()}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(cache_dir: Path) -> None:
    """Removes what killed processes of this host left: `.writing-*` folders whose process no longer runs."""
    for left in cache_dir.glob(f"{_WRITING}*"):
        writer, _, process = left.name.rpartition("-")
        if writer.endswith(f"-{_host()}") and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _host() -> str:
    return platform.node() or "localhost"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
