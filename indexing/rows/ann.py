"""Graphs and inverted lists over the rows of one segment, by faiss: they name candidates, the channel's storage scores.

An index is faiss' own bytes in an array of the segment. Built with one thread, so that equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Literal

import numpy as np

from chamfer.core.types import F32, I64, Array, Bool

SearchName = Literal["flat", "hnsw", "ivf"]
SMALLEST = 1_000  # rows; below, a scan is faster than any index
_LINKS = 32
_EF_CONSTRUCTION = 200


def build_index(kind: str, blocks: Iterable[F32], sample: F32, seed: int) -> Array:
    """faiss bytes u8 of an index over the rows of `blocks` f32 [n, D], kept as float16; ivf trains on `sample`."""
    faiss: Any = import_module("faiss")  # its stubs lack half of it
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index = _empty_index(kind, sample, seed)
        for block in blocks:
            index.add(np.ascontiguousarray(block))
    finally:
        faiss.omp_set_num_threads(threads)
    out: Array = faiss.serialize_index(index)
    return out


def open_index(stored: Array) -> Any:
    """The faiss index of its bytes."""
    faiss: Any = import_module("faiss")
    return faiss.deserialize_index(np.ascontiguousarray(stored))


def search_index(index: Any, query: F32, depth: int, usable: Bool | None, effort: int) -> I64:
    """Rows i64 [<= depth] near query f32 [D], usable ones alone. effort: rows looked at (hnsw), lists read (ivf)."""
    faiss: Any = import_module("faiss")
    selector = None if usable is None else faiss.IDSelectorBitmap(np.packbits(usable, bitorder="little"))
    if isinstance(index, faiss.IndexHNSW):
        params = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, depth))
    else:
        params = faiss.SearchParametersIVF(sel=selector, nprobe=effort)
    rows: I64 = index.search(query[None], min(depth, index.ntotal), params=params)[1][0]
    return rows[rows >= 0]


def _empty_index(kind: str, sample: F32, seed: int) -> Any:
    faiss: Any = import_module("faiss")
    dim, metric = sample.shape[1], faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.index_factory(dim, f"HNSW{_LINKS}_SQfp16", metric)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
    else:
        lists = max(1, min(int(np.sqrt(len(sample))), len(sample) // 39))
        index = faiss.index_factory(dim, f"IVF{lists},SQfp16", metric)
        index.cp.seed = seed
    index.train(sample)
    return index
