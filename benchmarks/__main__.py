"""Runs every benchmark in turn, each in its own process: `python -m benchmarks [--quick] [--limit SECONDS]`.

--limit stops a benchmark that takes longer and counts it as failed. Other options are passed to every benchmark. The
exit status is 1 if any benchmark failed. A benchmark that cannot run on this machine prints "skipped" and exits with 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks import SUBJECTS, module_of


def run(subject: str, options: list[str], limit: float | None) -> str:
    """Runs one benchmark; returns a description of the failure, or "" on success."""
    command = [sys.executable, "-m", module_of(subject), *options]
    try:
        status = subprocess.run(command, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"took longer than {limit:.0f} seconds"
    return f"exit status {status}" if status else ""


def main() -> None:
    """Runs all subjects and reports the duration and the outcome of each."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--limit", type=float, help="time limit of each benchmark in seconds")
    options, rest = arguments.parse_known_args()
    faults = {}
    for subject in SUBJECTS:
        begin = time.monotonic()
        if fault := run(subject, rest, options.limit):
            faults[subject] = fault
        print(f"{subject}: {fault or 'ok'}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    sys.exit("\n".join(["failed:", *(f"  {subject}: {fault}" for subject, fault in faults.items())]) if faults else 0)


if __name__ == "__main__":
    main()
