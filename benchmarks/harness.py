"""Shared by all benchmarks: result rows, interleaved timing, the description of the machine and the command line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chamfer.indexing.building.corpus import read_qrels


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` says how many times better (faster, smaller, more accurate) it is than that of `peer`."""

    what: str
    value: float
    unit: str
    peer: str = ""
    ratio: float | None = None


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each contender in each round. Every round runs all contenders in turn; a first one is not counted.

    The default clock is the CPU time of this process, which stays comparable on a shared machine; wall time does not.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], per: float, unit: str, peer: str) -> list[Row]:
    """Medians per item (`per` items a run) with the range in the name; ratios are medians of the ratios per round."""
    rows = []
    for name, times in seconds.items():
        median, low, high = (float(f(times)) / per for f in (np.median, np.min, np.max))
        scale = {"ms": 1e3, "us": 1e6, "s": 1.0}[unit]
        ratio = float(np.median(np.array(seconds[peer]) / np.array(times)))
        spread = f"[{low * scale:.3g}-{high * scale:.3g}]"
        rows.append(Row(f"{name} {spread}", median * scale, unit, peer, None if name == peer else ratio))
    return rows


def titled(title: str, rows: Sequence[Row]) -> list[Row]:
    """The rows with `title` prefixed to their names."""
    return [Row(f"{title}: {row.what}", row.value, row.unit, row.peer, row.ratio) for row in rows]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --quick and --json, to which each benchmark adds its own options."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--quick", action="store_true", help="a reduced run, to check that the benchmark works")
    arguments.add_argument("--json", action="store_true", help="print the rows as a JSON list")
    return arguments


def emit(rows: Sequence[Row], as_json: bool) -> None:
    """Prints the rows as JSON, or as a Markdown table below the description of the machine."""
    print(json.dumps([asdict(row) for row in rows], indent=1) if as_json else f"{machine()}\n\n{markdown(rows)}")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | value | unit | peer | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.what} | {row.value:.5g} | {row.unit} | {row.peer} | {ratio} |")
    return "\n".join([*lines, ""])


def machine() -> str:
    """Commit, date, processor and number of cores, in one line."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    processor = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":")[1].split() for line in _cpuinfo() if line.startswith("flags")), [])
    extras = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    date = time.strftime("%Y-%m-%d")
    return f"{commit.stdout.strip() or 'no commit'}, {date}, {processor} ({' '.join(extras)}), {os.cpu_count()} cores"


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirects standard output, also that of compiled code, to standard error; standard output is for the rows."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def demo_corpus() -> Path:
    """The path of the corpus that ships with the project."""
    return Path(__file__).resolve().parents[1] / "src" / "chamfer" / "demo" / "fairytaleqa"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def excerpt(folder: Path, work: Path, n_documents: int = 500) -> Path:
    """Writes a small collection with an answer to each of its queries, from 40 judgements; returns its folder."""
    target = work / folder.resolve().name
    (target / "qrels").mkdir(parents=True)
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    qrels = read_qrels(folder, "test")
    relevant_ids = {row[1] for row in qrels[:40]}
    chosen = [line for line in lines if json.loads(line)["_id"] in relevant_ids]
    chosen += [line for line in lines if json.loads(line)["_id"] not in relevant_ids][: n_documents - len(chosen)]
    (target / "corpus.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    queries = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    judged_ids = {row[0] for row in qrels[:40]}
    judged = [line for line in queries if json.loads(line)["_id"] in judged_ids]
    (target / "queries.jsonl").write_text("\n".join(judged) + "\n", encoding="utf-8")
    table = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels[:40])
    (target / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + table, encoding="utf-8")
    return target
