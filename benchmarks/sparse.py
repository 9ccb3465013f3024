"""Learned sparse vectors: exact top 10 compared with SciPy, Seismic and BMP: time per query, bytes and build rate.

CPU time of one thread. Real vectors come from --vectors (written by benchmarks/peers/splade.py); without it they are
drawn at random. If --documents exceeds their number, rows are mixed: 70 % of the terms of one row and 30 % of those of
another, with jittered weights. Seismic and BMP come from the environment --peers (see benchmarks/peers/sparse.sh);
without it only SciPy and a plain numba scan are measured. Converting queries to a peer's format is not timed. Recall
counts any row whose score ties with the tenth.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from benchmarks.harness import Row, compare, emit, interleave, parser, titled
from benchmarks.peers.engines import Run, bmp, numba_scan, seismic, sizes
from benchmarks.peers.vectors import WIDTH, sparse_vectors
from chamfer.core.types import Encoding, SparseVectors
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart

K = 10
SEGMENT = 65_536
LARGE = 100_000  # above this number of rows BMP is left out and fewer rounds are run
PRUNING = (0.2, 0.35, 0.45)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--vectors", type=Path, help="folder with splade-*.npz")
    arguments.add_argument("--peers", type=Path, help="virtual environment with Seismic and BMP")
    arguments.add_argument("--documents", type=int, nargs="+", default=[20_000])
    options = arguments.parse_args()
    if options.peers:
        sys.path += [str(next(options.peers.glob("lib/python*/site-packages")))]
    rows: list[Row] = []
    for size in options.documents:
        n = min(size, 2_000) if options.quick else size
        documents, queries, origin = sparse_vectors(options.vectors, n, 50 if options.quick else 150)
        rounds = 3 if options.quick or n > LARGE else 9
        with threadpool_limits(1):
            figures = run(documents, queries, rounds, with_peers=options.peers is not None)
        rows += titled(f"sparse, {len(documents):,} {origin} rows", figures)
    emit(rows, options.json)


def run(documents: SparseVectors, queries: SparseVectors, rounds: int, *, with_peers: bool) -> list[Row]:
    """Time, recall, bytes and build rate of every engine."""
    transposed = csr_matrix((documents.weights, documents.terms, documents.offsets), (len(documents), WIDTH)).T.tocsr()
    single_queries = [queries.take([i]) for i in range(len(queries))]
    exact = [(_matrix(query) @ transposed).toarray()[0] for query in single_queries]
    postings = float(np.mean([np.diff(transposed.indptr)[query.terms].sum() for query in single_queries]))
    rows = [Row("postings of a query", postings, "postings")]
    rows.append(Row("terms of a query", len(queries.terms) / len(queries), "terms"))
    runs: dict[str, Run] = {"SciPy": partial(_scipy, transposed, single_queries)}
    runs |= numba_scan((transposed.indptr, transposed.indices, transposed.data), len(documents), single_queries, K)
    for storage in ("float32", "uint8"):
        runs |= _ours(storage, documents, single_queries, rows)
    if with_peers:
        runs |= seismic(documents, single_queries, K, rows)
        if len(documents) <= LARGE:
            runs |= bmp(documents, single_queries, K, rows)
    rows += titled("query, top 10", compare(interleave(runs, rounds), len(single_queries), "us", "SciPy"))
    for name, search in runs.items():
        rows.append(Row(f"recall@10: {name}", _recall(exact, search()), "share"))
    return rows


def _ours(storage: str, documents: SparseVectors, queries: list[SparseVectors], rows: list[Row]) -> dict[str, Run]:
    name = f"chamfer {storage}"
    family = make_family("sparse", {"storage": storage})
    edges = range(0, len(documents), SEGMENT)
    blocks = [documents.take(np.arange(start, min(start + SEGMENT, len(documents)))) for start in edges]
    encodings = [Encoding(np.zeros(len(b), np.int32), np.zeros(len(b), bool), sparse=b) for b in blocks]
    packed: list[Any] = []
    seconds = interleave({name: lambda: packed.append([family.pack([], encoding) for encoding in encodings])}, 1)[name][
        0
    ]
    parts = [SegmentPart(arrays, None, len(block)) for arrays, block in zip(packed[-1], blocks, strict=True)]
    sizes(name, seconds, sum(a.nbytes for part in parts for a in part.arrays.values()), documents, rows)
    exact: Any = family.open(parts)
    runs: dict[str, Run] = {name: lambda: [exact.search(query, K).of(0)[0] for query in queries]}
    for pruning in PRUNING if len(documents) > LARGE else ():  # smaller collections are always searched exactly
        loose = exact.with_params(pruning=pruning)
        runs[f"{name}, pruning {pruning}"] = partial(
            lambda r: [r.search(query, K).of(0)[0] for query in queries], loose
        )
    return runs


def _scipy(transposed: Any, queries: list[SparseVectors]) -> list[Any]:
    results = []
    for query in queries:
        scores = _matrix(query) @ transposed
        best = np.argpartition(-scores.data, min(K, len(scores.data) - 1))[:K]
        results.append(scores.indices[best])
    return results


def _recall(exact: list[Any], results: list[Any]) -> float:
    """Share of the K results that score no less than the K-th best row, up to the rounding of float32."""
    shares = []
    for scores, rows in zip(exact, results, strict=True):
        kth = np.partition(scores, len(scores) - K)[len(scores) - K]
        shares.append(np.count_nonzero(scores[rows[:K]] >= kth * (1 - 1e-5)) / K)
    return float(np.mean(shares))


def _matrix(vectors: SparseVectors) -> Any:
    return csr_matrix((vectors.weights, vectors.terms, vectors.offsets), (len(vectors), WIDTH))


if __name__ == "__main__":
    main()
