"""Contenders of benchmarks/sparse.py: a plain scan, Seismic and BMP. Preparing their queries is not timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, stdout_to_stderr
from chamfer.core.types import SparseVectors

Run = Callable[[], list[Any]]
SEISMIC_BUILD = {"n_postings": 2000, "centroid_fraction": 0.1, "summary_energy": 0.4}
SEISMIC = ((10, 0.8), (20, 0.8), (40, 0.7))  # query_cut, heap_factor
BMP_BLOCK = 8


def seismic(documents: SparseVectors, queries: list[SparseVectors], k: int, rows: list[Row]) -> dict[str, Run]:
    """pyseismic-lsr at several trade-offs between time and recall."""
    library = import_module("seismic")
    kind = library.get_seismic_string()
    dataset = library.SeismicDataset()
    for i in range(len(documents)):
        span = slice(documents.offsets[i], documents.offsets[i + 1])
        dataset.add_document(str(i), documents.terms[span].astype(kind), documents.weights[span])
    with tempfile.TemporaryDirectory() as folder, stdout_to_stderr():
        start = time.process_time()
        index = library.SeismicIndex.build_from_dataset(dataset, num_threads=1, **SEISMIC_BUILD)
        seconds = time.process_time() - start
        index.save(f"{folder}/index")
        saved = sum(file.stat().st_size for file in Path(folder).iterdir())
    sizes("Seismic", seconds, saved, documents, rows)
    prepared = [(query.terms.astype(kind), query.weights) for query in queries]

    def search(cut: int, factor: float) -> list[Any]:
        results = [index.search("q", terms, weights, k, cut, factor) for terms, weights in prepared]
        return [np.array([int(hit[2]) for hit in hits], dtype=np.int64) for hits in results]

    return {f"Seismic cut {cut} factor {factor}": partial(search, cut, factor) for cut, factor in SEISMIC}


def numba_scan(by_term: tuple[Any, Any, Any], n: int, queries: list[SparseVectors], k: int) -> dict[str, Run]:
    """The obvious scan: sums float32 impacts term by term, then selects the k best with numpy."""
    from numba import njit

    @njit(nogil=True)  # type: ignore[untyped-decorator]
    def add(offsets: Any, rows: Any, impacts: Any, terms: Any, weights: Any, scores: Any) -> None:
        scores[:] = 0
        for i in range(len(terms)):
            for p in range(offsets[terms[i]], offsets[terms[i] + 1]):
                scores[rows[p]] += weights[i] * impacts[p]

    scores = np.zeros(n, dtype=np.float32)

    def search() -> list[Any]:
        results = []
        for query in queries:
            add(*by_term, query.terms, query.weights, scores)
            results.append(np.argpartition(scores, n - k)[n - k :])
        return results

    return {"numba scan": search}


def bmp(documents: SparseVectors, queries: list[SparseVectors], k: int, rows: list[Row]) -> dict[str, Run]:
    """BMP with alpha = beta = 1, which is exact for its 8-bit impacts and query weights."""
    library = import_module("bmp")
    step = float(documents.weights.max()) / 255
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/index"
        start = time.process_time()
        indexer = library.Indexer(path, BMP_BLOCK, True)
        for i in range(len(documents)):
            span = slice(documents.offsets[i], documents.offsets[i + 1])
            codes = np.maximum(np.rint(documents.weights[span] / step), 1).astype(int).tolist()
            indexer.add_document(str(i), {str(t): c for t, c in zip(documents.terms[span], codes, strict=True)})
        indexer.finish()
        sizes("BMP", time.process_time() - start, Path(path).stat().st_size, documents, rows)
        searcher = library.Searcher(path)
    prepared = []
    for query in queries:
        codes = np.maximum(np.rint(query.weights * 255 / query.weights.max()), 1).astype(int).tolist()
        prepared.append({str(t): c for t, c in zip(query.terms, codes, strict=True)})

    def search() -> list[Any]:
        results = [searcher.search(query, k, 1.0, 1.0) for query in prepared]
        return [np.array([int(i) for i in doc_ids], dtype=np.int64) for doc_ids, _ in results]

    return {f"BMP block {BMP_BLOCK}": search}


def sizes(name: str, seconds: float, n_bytes: int, documents: SparseVectors, rows: list[Row]) -> None:
    """Appends the build rate and the size of an index to `rows`."""
    rows.append(Row(f"built: {name}", len(documents) / max(seconds, 1e-9), "documents/s"))
    rows.append(Row(f"bytes a document: {name}", n_bytes / len(documents), "B"))
    rows.append(Row(f"bytes a posting: {name}", n_bytes / len(documents.terms), "B"))
