"""Plans over whole collections: nDCG@10, R@100, latency of a single caller, bytes per document and build rate.

    python -m benchmarks.quality [FOLDER ...] [--quick] [--json]

FOLDER is a BEIR collection; the shipped one is used if none is named. Each is built with the default settings. Every
judged test query then runs through `dense` alone and through the presets `fast` (BM25 alone), `balanced` and `best`.
--quick takes 500 documents and 40 judgements of each to check that the program runs; its figures mean nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Row, demo_corpus, emit, excerpt, parser
from chamfer.api import build, open
from chamfer.cli.evaluate import compare_plans
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.settings import load_settings

PLANS_FILE = """
[plans.dense.channels]
dense = {}
"""
PLANS = ["dense", "fast", "balanced", "best"]
MEASURES = ["nDCG@10", "R@100"]


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    options = arguments.parse_args()
    rows: list[Row] = []
    for folder in options.folders or [demo_corpus()]:
        with tempfile.TemporaryDirectory() as work:
            source = excerpt(folder, Path(work)) if options.quick else folder
            rows += measure(source, folder.resolve().name, Path(work))
    emit(rows, options.json)


def measure(source: Path, name: str, work: Path) -> list[Row]:
    """Builds one corpus and runs all plans over it."""
    (work / "plans.toml").write_text(PLANS_FILE)
    settings = load_settings(work / "plans.toml", {"HOME": os.path.expanduser("~")})
    documents = list(read_corpus(str(source)))
    begin = time.perf_counter()
    build(documents, work / "collection", settings=settings).close()
    rate = len(documents) / (time.perf_counter() - begin)
    qrels = read_qrels(source, "test")
    judged_ids = {qrel.query_id for qrel in qrels}
    queries = [query for query in read_queries(source) if query.query_id in judged_ids]
    rows = [Row(f"{name}: build of {len(documents):,} documents", rate, "documents/s")]
    with open(work / "collection", settings=settings) as searcher:
        for result in compare_plans(searcher.pipeline, PLANS, queries, qrels, MEASURES):
            title = f"{name} {result.plan}"
            rows += [Row(f"{title}: {measure}", value, measure) for measure, value in result.evaluation.means.items()]
            rows.append(Row(f"{title}: p50 [p95 {result.p95_ms:.1f}]", result.p50_ms, "ms"))
            rows.append(Row(f"{title}: bytes a document", result.bytes_per_document, "B"))
    return rows


if __name__ == "__main__":
    main()
