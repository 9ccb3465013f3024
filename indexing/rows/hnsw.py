"""Index `hnsw`: hierarchical navigable small worlds (Malkov and Yashunin, arXiv 1603.09320), by faiss."""

from __future__ import annotations

from typing import Any

from chamfer.core.types import F32
from chamfer.indexing.rows.faiss_library import faiss_library

_LINKS = 32
_EF_CONSTRUCTION = 200


def empty_index(sample: F32, seed: int) -> Any:
    """A faiss index without rows, whose float16 quantiser is trained on sample f32 [n, D]."""
    faiss = faiss_library()
    index = faiss.index_factory(sample.shape[1], f"HNSW{_LINKS}_SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.train(sample)
    return index


def search_parameters(effort: int, depth: int, selector: Any) -> Any:
    """effort: size of the candidate list of a search (ef_search), raised to `depth` if that is larger."""
    faiss = faiss_library()
    return faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, depth))
