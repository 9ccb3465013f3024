"""Approximate neighbour indexes over the rows of one segment. They propose candidates; scores come from the storage.

An index is an array of the segment that holds faiss' serialised bytes. It is built in one thread, so that equal rows
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal

import numpy as np

from chamfer.core.types import F32, I64, Array, Bool
from chamfer.indexing.rows import hnsw, ivf
from chamfer.indexing.rows.faiss_library import faiss_library

IndexName = Literal["hnsw", "ivf"]
MIN_INDEXED_ROWS = 1_000  # below, a scan is faster than any index

_KINDS: dict[str, ModuleType] = {"hnsw": hnsw, "ivf": ivf}


def build_index(kind: IndexName, blocks: Iterable[F32], sample: F32, seed: int) -> Array:
    """The bytes u8 of an index over the rows of `blocks` f32 [n, D], stored as float16, trained on `sample`."""
    faiss = faiss_library()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index = _KINDS[kind].empty_index(sample, seed)
        for block in blocks:
            index.add(np.ascontiguousarray(block))
    finally:
        faiss.omp_set_num_threads(threads)
    serialised: Array = faiss.serialize_index(index)
    return serialised


class AnnIndex:
    """An index, opened for search."""

    def __init__(self, kind: IndexName, serialised: Array) -> None:
        faiss = faiss_library()
        self._kind = _KINDS[kind]
        self._index = faiss.deserialize_index(np.ascontiguousarray(serialised))

    def search(self, query: F32, depth: int, usable: Bool | None, effort: int) -> I64:
        """At most `depth` rows near query f32 [D], of the usable ones; effort: ef_search (hnsw) or n_probe (ivf)."""
        faiss = faiss_library()
        selector: Any = None
        if usable is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(usable, bitorder="little"))
        parameters = self._kind.search_parameters(effort, depth, selector)
        rows: I64 = self._index.search(query[None], min(depth, self._index.ntotal), params=parameters)[1][0]
        return rows[rows >= 0]
