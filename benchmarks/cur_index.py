"""Cost of an index of family `cur`: estimated and actual build time, bytes, and resuming an interrupted build.

    python -m benchmarks.cur_index [FOLDER] [--reranker NAME] [--documents 240] [--anchors 20] [--quick] [--json]

FOLDER is a BEIR collection; its train (else dev, else test) queries become anchor queries. The whole build is timed,
from the first document to the commit of the snapshot. Both the estimate and the build use CPU time of one thread,
because wall time on a shared machine says nothing about an estimate. The same build is then interrupted and run again;
the scores must be identical.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cur import anchor_queries
from benchmarks.harness import Row, demo_corpus, emit, parser
from chamfer.core.protocols import Pair, PairReranker, Reranker
from chamfer.core.types import F32, Array, Document, Query
from chamfer.indexing.building.builder import BuildReport, BuildRun, build
from chamfer.indexing.building.corpus import read_corpus
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.indexing.families.cur.anchor_scores import AnchorScorer
from chamfer.models.registry import load_reranker
from chamfer.settings import load_settings

EXTRAPOLATED = ((100_000, 200), (1_000_000, 500))


class Interrupted(Exception):
    """Raised by InterruptibleReranker to interrupt a build."""


class InterruptibleReranker:
    """A reranker that counts its pairs and raises Interrupted after `stop_after` of them."""

    def __init__(self, inner: PairReranker, stop_after: int | None = None) -> None:
        self.name, self.fingerprint = inner.name, inner.fingerprint
        self.reads_images, self.score_kind = inner.reads_images, inner.score_kind
        self.pairs = 0
        self._inner = inner
        self._dies_after = stop_after

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker."""
        return self.score_pairs([(query, document) for document in documents])

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker."""
        self.pairs += len(pairs)
        if self._dies_after is not None and self.pairs > self._dies_after:
            raise Interrupted
        return self._inner.score_pairs(pairs)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, nargs="?", default=demo_corpus())
    arguments.add_argument("--reranker", default="mini-cross")
    arguments.add_argument("--documents", type=int, default=240)
    arguments.add_argument("--anchors", type=int, default=20)
    options = arguments.parse_args()
    n, anchors = (48, 6) if options.quick else (options.documents, options.anchors)
    documents = list(islice(read_corpus(str(options.folder)), n))
    queries = [Query(str(i), text) for i, text in enumerate(anchor_queries(options.folder, documents, anchors))]
    reranker: Any = load_reranker(options.reranker, replace(load_settings().models.device, threads=1))
    with tempfile.TemporaryDirectory() as work:
        emit(measured(documents, queries, reranker, Path(work)), options.json)


def measured(documents: Sequence[Document], queries: Sequence[Query], reranker: PairReranker, work: Path) -> list[Row]:
    """Builds, interrupts and resumes, and returns all figures."""
    texts = [query.text for query in queries]
    estimate = AnchorScorer(reranker, texts, work, clock=time.process_time).estimate(documents, len(documents))
    counted = InterruptibleReranker(reranker)
    begin = time.process_time()
    report = built(documents, queries, counted, work / "whole")
    build_seconds = time.process_time() - begin
    sampled = counted.pairs - estimate.pairs
    rate = counted.pairs / build_seconds

    interrupted = InterruptibleReranker(reranker, stop_after=sampled + estimate.pairs * 2 // 3)
    with suppress(Interrupted):
        built(documents, queries, interrupted, work / "interrupted")
    resumed = InterruptibleReranker(reranker)
    built(documents, queries, resumed, work / "interrupted")
    same = np.array_equal(columns(work / "whole"), columns(work / "interrupted"))

    title = f"{report.documents:,} documents, {len(queries)} anchor queries"
    rows = [
        Row(f"{title}: calls", estimate.pairs, "calls"),
        Row(f"{title}: calls of the estimate itself", sampled, "calls"),
        Row(f"{title}: estimated before", estimate.seconds, "s"),
        Row(f"{title}: whole build", build_seconds, "s", "estimate", estimate.seconds / build_seconds),
        Row(f"{title}: pairs per second", rate, "pairs/s"),
        Row(f"{title}: bytes a document", bytes_of(work / "whole") / report.documents, "B"),
        Row(f"{title}: calls of a build killed on its way", interrupted.pairs, "calls"),
        Row(f"{title}: calls to finish it", resumed.pairs, "calls"),
        Row(f"{title}: its scores are those of the whole one", float(same), "1 = same bits"),
    ]
    return rows + [
        Row(f"extrapolated: {n:,} documents, {k} anchor queries", n * k / rate / 3600, "hours") for n, k in EXTRAPOLATED
    ]


def built(documents: Sequence[Document], queries: Sequence[Query], reranker: Reranker, folder: Path) -> BuildReport:
    """Builds a collection with only the channel `cur`."""
    config = CollectionConfig(channels=("cur",), parameters={"cur": {"anchor_queries": len(queries)}})
    run = BuildRun(total=len(documents), queries=queries, reranker=reranker)
    return build(documents, folder, encoder=None, config=config, run=run)


def columns(collection: Path) -> Array:
    """The stored scores [N, number of anchor queries]."""
    opened = Collection.open(collection)
    retriever: Any = opened.channels["cur"].retriever
    values: Array = retriever.columns(np.arange(opened.n_rows))
    opened.close()
    return values


def bytes_of(collection: Path) -> int:
    """Bytes of the channel `cur` on disk."""
    opened = Collection.open(collection)
    size = opened.bytes_by_part()["cur"]
    opened.close()
    return size


if __name__ == "__main__":
    main()
