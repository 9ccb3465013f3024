"""Index `ivf`: inverted lists around k-means centres (Jegou et al., TPAMI 2011), by faiss."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.types import F32
from chamfer.indexing.rows.faiss_library import faiss_library

_ROWS_PER_LIST = 39  # faiss warns about fewer training rows per list


def empty_index(sample: F32, seed: int) -> Any:
    """A faiss index without rows, whose centres are trained on sample f32 [n, D]."""
    faiss = faiss_library()
    lists = max(1, min(int(np.sqrt(len(sample))), len(sample) // _ROWS_PER_LIST))
    index = faiss.index_factory(sample.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.train(sample)
    return index


def search_parameters(effort: int, depth: int, selector: Any) -> Any:
    """effort: number of lists that a search reads (n_probe)."""
    faiss = faiss_library()
    return faiss.SearchParametersIVF(sel=selector, nprobe=effort)
