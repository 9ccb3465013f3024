"""Other engines in a separate environment: installed by `benchmarks.peers.install` and run as subprocesses.

A peer reads the same .npy files as Chamfer, runs once per request and answers with the time it took, so that its runs
can be interleaved with those of Chamfer.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

HOME = Path(__file__).resolve().parents[2] / "var" / "peers"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class Peer:
    """A process that runs one task of one peer on request, with one thread."""

    def __init__(self, home: Path, task: str, folder: Path) -> None:
        self.task = task
        self._process = subprocess.Popen(
            [str(home / "bin" / "python"), str(Path(__file__).with_name("runner.py")), task, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | _ONE_THREAD,
        )
        self.ready = self._answer() == "ready"

    def seconds(self) -> float:
        """Runs the task once and returns its CPU seconds."""
        if self._process.stdin is None:
            raise RuntimeError(f"the standard input of peer {self.task!r} is closed")
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self) -> str:
        return "" if self._process.stdout is None else self._process.stdout.readline().strip()
