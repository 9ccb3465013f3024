"""Writers in separate processes, to be killed.

`python support_faults.py` reads lines. For "OPERATION PATH" it forks a writer and prints its process id; for "wait" it
waits for that writer and prints its wait status (until then the id belongs to no other process, so that it is safe to
kill). It imports everything once and runs nothing itself, so that its forks start at once and without threads.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402  # the path comes first
import pyarrow as pa  # noqa: E402
from support_encoders import HashEncoder, make_documents  # noqa: E402

from chamfer.core.analysis import AnalysisConfig, Analyzer  # noqa: E402
from chamfer.core.artifact import file_digest  # noqa: E402
from chamfer.core.types import Query, VectorKind  # noqa: E402
from chamfer.indexing.building.builder import BuildConfig, build  # noqa: E402
from chamfer.indexing.building.updates import add, compact, delete  # noqa: E402
from chamfer.indexing.collection.collection import Collection  # noqa: E402

CONFIG = BuildConfig(block_documents=8, segment_documents=24)
BUILT = make_documents(60, seed=1)
ADDED = make_documents(30, seed=2, first=50)  # ten of them replace older ones
DELETED = [f"d{i}" for i in range(0, 80, 7)]
PAUSE_SECONDS = 0.005


def run(operation: str, path: Path, pause_seconds: float = 0.0) -> None:
    encoder = HashEncoder(pause_seconds=pause_seconds)
    if operation == "build":
        build(BUILT, path, encoder=encoder, config=CONFIG)
    elif operation == "rebuild":
        build(BUILT, path, encoder=encoder, config=CONFIG, replace=True)
    elif operation == "add":
        add(path, ADDED, encoder=encoder, on_existing="replace")
    elif operation == "delete":
        delete(path, DELETED)
    elif operation == "compact":
        compact(path)
    else:
        raise ValueError(operation)


def fingerprint(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a collection, by relative name."""
    return {
        str(p.relative_to(path)): file_digest(p) for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def contents(path: Path, *, with_name: bool = True) -> str:
    """One digest of what a reader sees: (snapshot name,) live documents and what they score. Every byte is checked."""
    with Collection.open(path, verify=True) as opened:
        rows = opened.rows(sorted({d.doc_id for d in BUILT + ADDED}))
        live = rows[rows >= 0]
        assert len(np.unique(live)) == len(live) == len(opened)
        digest = hashlib.sha256(opened.snapshot.encode() if with_name else b"")
        for document in opened.documents(live):
            digest.update(
                repr((document.doc_id, document.title, document.text, sorted(document.metadata.items()))).encode()
            )
        query = HashEncoder().encode_queries([Query("q", "w1 w2 w3")], [VectorKind.DENSE])
        hits = opened.channels["dense"].retriever.search(query.vectors(VectorKind.DENSE), 100)
        digest.update(hits.scores.tobytes())
        return digest.hexdigest()


class Writers:
    """Starts writers by way of a process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, operation: str, path: Path) -> int:
        """Starts a writer; returns its process id."""
        return int(self._ask(f"{operation} {path}"))

    def kill(self, pid: int) -> bool:
        """Kills the writer started last; True if it had already ended by itself."""
        os.kill(pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> bool:
        """Waits for the writer started last; True if it ended by itself, False if it was killed."""
        status = os.waitstatus_to_exitcode(int(self._ask("wait")))
        assert status in (0, -signal.SIGKILL), status
        return status == 0

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextmanager
def writers() -> Iterator[Writers]:
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Writers(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _serve() -> None:
    pa.array([""]).to_pylist()  # imports pandas where it is installed: a second that each fork would spend
    Analyzer(AnalysisConfig())
    pid = 0
    for line in sys.stdin:
        if line == "wait\n":
            print(os.waitpid(pid, 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            operation, path = line.split()
            run(operation, Path(path), PAUSE_SECONDS)
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
