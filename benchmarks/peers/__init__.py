"""Other engines in an environment of their own: installed by `benchmarks.peers.install`, run as subprocesses.

A peer reads the same .npy files as we do, works when it is told to, and says how long it took, so that it can be
measured in turn with our own code.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

HOME = Path(__file__).resolve().parents[2] / "var" / "peers"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class Peer:
    """One task of one peer in a process that waits. `seconds()` runs it once: CPU time of that process's one thread."""

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
        """Runs the task once."""
        if self._process.stdin is None:
            raise RuntimeError("the peer's input is closed")
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self) -> str:
        return "" if self._process.stdout is None else self._process.stdout.readline().strip()
