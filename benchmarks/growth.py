"""Late interaction as a collection grows: build time, bytes, memory, and the time of centroid and exact search.

    python -m benchmarks.growth [FOLDER ...] [--encoded DIR] [--sizes N ...] [--quick] [--json]

The documents are synthetic (benchmarks/synthetic.py: spans of 20 tokens from each of two real documents, with noise),
derived from the collections in FOLDER; the queries are the real ones of at most 32 tokens. Storage is int8 with 4,096
centroids learned from the first 2,048 documents, in segments of 8,192. Build time is learning and packing, without
encoding. Recall is that of the exact top 10 over the same codes. CPU time of one thread.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.encoded import load
from benchmarks.harness import Row, demo_corpus, emit, excerpt, parser
from benchmarks.late import encoding_of, split, together
from benchmarks.synthetic import mixed
from chamfer.core.types import Array, TokenVectors
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart

SIZES = (5_000, 20_000, 80_000, 320_000)
TOKENS = 40
SAMPLE = 2048
SETTING: Mapping[str, Any] = {"storage": "int8", "centroids": 4096}
MEASURES = ("build", "bytes a document", "memory", "p50", "p99", "exact p50", "recall@10")


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--encoded", type=Path)
    arguments.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    arguments.add_argument("--queries", type=int, default=60, help="maximum number of queries in total")
    options = arguments.parse_args()
    sizes, n_queries = ((500, 2000), 10) if options.quick else (options.sizes, options.queries)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work, threadpool_limits(1):
        folders = options.folders or [demo_corpus()]
        folders = [excerpt(folder, Path(work)) if options.quick else folder for folder in folders]
        sets = [load(folder, options.encoded or Path(work), -(-n_queries // len(folders))) for folder in folders]
        tokens, _, queries = together(sets, None)
        for size in sizes:
            rows += grown(tokens, size, queries)
    emit(rows, options.json)


def grown(real: TokenVectors, n: int, queries: list[Array]) -> list[Row]:
    """The figures of one size."""
    memory = _resident()
    retriever, build_s, n_bytes = built(real, n)
    exact = retriever.with_params(search_mode="exact")
    seconds: dict[str, list[float]] = {"by centroids": [], "exact": []}
    hits = []
    for query in queries[:1] + queries:  # the first search compiles and is not counted
        rows_by_mode = {}
        for name, searcher in (("by centroids", retriever), ("exact", exact)):
            begin = time.process_time()
            rows_by_mode[name] = searcher.search(split(query), 10).rows[0]
            seconds[name].append(time.process_time() - begin)
        hits.append(np.isin(rows_by_mode["exact"], rows_by_mode["by centroids"]).mean())
    centroid_ms, exact_ms = (np.array(seconds[name][1:]) * 1e3 for name in ("by centroids", "exact"))
    values = (
        (build_s, "s"),
        (n_bytes / n, "B"),
        ((_resident() - memory) / 2**20, "MiB"),
        (float(np.median(centroid_ms)), "ms"),
        (float(np.quantile(centroid_ms, 0.99)), "ms"),
        (float(np.median(exact_ms)), "ms"),
        (float(np.mean(hits[1:])), "share"),
    )
    return [Row(f"{n} documents: {what}", *value) for what, value in zip(MEASURES, values, strict=True)]


def built(real: TokenVectors, n: int) -> tuple[Any, float, int]:
    """(retriever, CPU seconds of learning and packing, bytes of the arrays) of n synthetic documents."""
    plain = make_family("multivector", SETTING)
    seconds = 0.0
    parts: list[SegmentPart] = []
    family = plain
    for block, _ in mixed(real, n, TOKENS):
        begin = time.process_time()
        if not parts:
            family = plain.with_codec(plain.learn(encoding_of(block.take(range(min(SAMPLE, len(block)))))))
        arrays = {name: np.asarray(array) for name, array in family.pack([], encoding_of(block)).items()}
        seconds += time.process_time() - begin
        parts.append(SegmentPart(arrays, None, len(block)))
    n_bytes = sum(array.nbytes for part in parts for array in part.arrays.values())
    return family.open(parts), seconds, n_bytes


def plot(axes: Any, rows: list[Row]) -> bool:
    """Search times, build time and memory against the number of documents, on logarithmic scales."""
    cells = _cells(rows)
    for measure, unit in (("p50", "ms"), ("p99", "ms"), ("exact p50", "ms"), ("build", "s"), ("memory", "MiB")):
        axes.plot(list(cells), [cell[measure] for cell in cells.values()], marker="o", label=f"{measure}, {unit}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(cells), [f"{size:,}" for size in cells])
    axes.minorticks_off()
    axes.set_xlabel("synthetic documents of at most 40 tokens")
    axes.legend(fontsize=8)
    return bool(cells)


def table(rows: list[Row]) -> str:
    """One line per size."""
    units = {row.what.partition(": ")[2]: row.unit for row in rows}
    head = " | ".join(f"{measure}, {units[measure]}" for measure in MEASURES)
    lines = [f"| documents | {head} |", "| --- |" + " --- |" * len(MEASURES)]
    for size, cell in _cells(rows).items():
        lines.append(f"| {size:,} | {' | '.join(f'{cell[m]:,.3g}' for m in MEASURES)} |")
    return "\n".join([*lines, ""])


def _cells(rows: list[Row]) -> dict[int, dict[str, float]]:
    cells: dict[int, dict[str, float]] = {}
    for row in rows:
        size, _, measure = row.what.partition(" documents: ")
        cells.setdefault(int(size), {})[measure] = row.value
    return cells


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
