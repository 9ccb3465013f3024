"""Storage `rabitq`: one bit per dimension (RaBitQ by Gao and Long, SIGMOD 2024), by faiss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from chamfer.core.types import F32, Array
from chamfer.indexing.rows.faiss_library import faiss_library
from chamfer.indexing.rows.segment_part import Codec
from chamfer.indexing.rows.storage.protocol import Scan


class BitCodes:
    """values u8 [n, D / 8 + 8]; codec: mean f32 [D] of the sample, around which bits are taken.

    Vectors are not rotated first: at the dimensions of an FDE the matrix would be larger than most collections.
    """

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {"mean": values.astype(np.float64).mean(axis=0).astype(np.float32)}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        faiss = faiss_library()
        quantiser = faiss.RaBitQuantizer(values.shape[1], faiss.METRIC_INNER_PRODUCT)
        codes = np.zeros((len(values), quantiser.code_size), dtype=np.uint8)
        mean, rows = np.ascontiguousarray(codec["mean"]), np.ascontiguousarray(values)
        pointer = faiss.swig_ptr
        quantiser.compute_codes_core(pointer(rows), pointer(codes), len(rows), pointer(mean))
        return {"values": codes}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        index = _bit_index(arrays["values"], codec["mean"])
        return partial(_all_scores, index) if index.ntotal else lambda query: np.empty(0, dtype=np.float32)

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        vectors: F32 = _bit_index(arrays["values"], codec["mean"]).reconstruct_n(0, len(arrays["values"]))
        return vectors


def _bit_index(codes: Array, mean: F32) -> Any:
    """A faiss.IndexRaBitQ that holds a copy of the codes."""
    faiss = faiss_library()
    index = faiss.IndexRaBitQ(len(mean), faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.ascontiguousarray(mean), index.center)
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), index.codes)
    index.ntotal, index.is_trained = len(codes), True
    return index


def _all_scores(index: Any, query: F32) -> F32:
    """The estimates f32 [n] of all rows of the index, in their order."""
    estimates = np.empty(index.ntotal, dtype=np.float32)
    scores, rows = index.search(query[None], index.ntotal)
    estimates[rows[0]] = scores[0]
    return estimates
