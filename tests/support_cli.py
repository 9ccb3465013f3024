"""Runs the command line as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def chamfer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAMFER_")}
    return subprocess.run(
        [sys.executable, "-m", "chamfer", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**inherited, "COLUMNS": "200", **environment},
        check=False,
    )
