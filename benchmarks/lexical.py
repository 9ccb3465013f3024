"""BM25 compared with bm25s, on the demo corpus or any other: indexing time, query time, index size and scores.

CPU time of one thread. Both index the same texts through Chamfer's analyser (stemming and stop words). The query time
of bm25s is that of `retrieve` on analysed queries; the query time of Chamfer includes the analysis.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, compare, demo_corpus, emit, interleave, parser, titled
from chamfer.core.analysis import AnalysisConfig, Analyzer
from chamfer.core.types import Document
from chamfer.indexing.building.corpus import read_corpus, read_queries
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart

PEER = "bm25s"


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, default=demo_corpus())
    options = arguments.parse_args()
    documents = list(read_corpus(str(options.corpus)))
    queries = [query.text for query in read_queries(options.corpus)][: 100 if options.quick else 1000]
    emit(run(documents, queries, 2 if options.quick else 7), options.json)


def run(documents: list[Document], queries: list[str], rounds: int) -> list[Row]:
    """Measures indexing, search and index size, and how far the scores differ."""
    index = partial(_ours_built, documents)
    peer_index = partial(_peer_built, documents)
    rows = titled("BM25 index", compare(interleave({PEER: peer_index, "chamfer lexical": index}, rounds), 1, "s", PEER))
    part, peer = index(), peer_index()
    retriever: Any = make_family("lexical").open([part])
    analyzer = Analyzer(AnalysisConfig())
    tokens = [analyzer(query) for query in queries]
    contenders: dict[str, Any] = {
        PEER: partial(_peer_search, peer, tokens),
        "chamfer lexical": lambda: retriever.search(retriever.encode_queries(queries), 10),
    }
    rows += titled("BM25 query, top 10", compare(interleave(contenders, rounds), len(queries), "us", PEER))
    ours, theirs = retriever.search(retriever.encode_queries(queries), 10), _peer_search(peer, tokens)
    rows.append(Row("largest difference of a score in the top 10", _difference(ours, theirs), "score", PEER))
    our_bytes = sum(array.nbytes for array in part.arrays.values())
    with tempfile.TemporaryDirectory() as folder:
        peer.save(folder)
        peer_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    rows.append(Row("bytes a document: bm25s", peer_bytes / len(documents), "B", PEER))
    rows.append(Row("bytes a document: chamfer lexical", our_bytes / len(documents), "B", PEER, peer_bytes / our_bytes))
    rows.append(Row("bytes a posting: chamfer lexical", our_bytes / len(part.arrays["row_values"]), "B"))
    return rows


def _ours_built(documents: list[Document]) -> SegmentPart:
    return SegmentPart(make_family("lexical").pack(documents, None), None, len(documents))


def _peer_built(documents: list[Document]) -> Any:
    import bm25s

    analyzer = Analyzer(AnalysisConfig())
    peer = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    peer.index([analyzer(document.content) for document in documents], show_progress=False)
    return peer


def _peer_search(peer: Any, tokens: list[list[str]]) -> Any:
    return peer.retrieve(tokens, k=10, show_progress=False, n_threads=1)


def _difference(ours: Any, theirs: Any) -> float:
    our_scores = np.where(np.isfinite(ours.scores), ours.scores, 0.0)
    return float(np.abs(our_scores - np.asarray(theirs.scores)[:, : our_scores.shape[1]]).max())


if __name__ == "__main__":
    main()
