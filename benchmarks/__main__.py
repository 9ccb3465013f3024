"""`python -m benchmarks [--quick]`: every benchmark in turn."""

from __future__ import annotations

import subprocess
import sys

SUBJECTS = (
    "encoder",
    "exact",
    "lexical",
    "sparse",
    "multivector",
    "candidates",
    "late",
    "growth",
    "gpu",
    "feedback",
    "cur",
    "cur_index",
    "rerank",
    "mining",
    "cet_simulation",
    "cet_real",
    "mini_models",
    "http",
    "quality",
)

if __name__ == "__main__":
    failed = [
        s for s in SUBJECTS if subprocess.run([sys.executable, "-m", f"benchmarks.{s}", *sys.argv[1:]]).returncode
    ]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
