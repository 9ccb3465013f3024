"""How the rows of `fde` and `lemur` channels are kept: one small class a storage, the same four functions each.

Arrays have a row a document, so that segments merge by laying rows end to end; what a storage learns is the codec's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array
from chamfer.indexing.families.family import Codec
from chamfer.indexing.kernels.product import WIDTH, quantise, reconstruct, scan_codes, train_codebooks
from chamfer.indexing.kernels.scan import quantise_rows, scan_half, scan_int8

Scan = Callable[[F32], F32]
StorageName = Literal["int8", "float16", "pq8", "rabitq"]
OWN_CODEBOOKS = 10_000  # documents from which on every group of dimensions gets a codebook of its own


class Storage(Protocol):
    """Rows f32 [n, D] as arrays [n, ...] and back."""

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        """What packing needs, from a sample [n, D], n >= 1."""
        ...

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]: ...

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        """What gives f32 [n], estimates of all rows' inner products with a query f32 [D], each for itself."""
        ...

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        """f32 [n, D]: what the arrays stand for."""
        ...


class Int8:
    """values i8 [n, D], scales f32 [n]."""

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        codes, scales = quantise_rows(values)
        return {"values": codes, "scales": scales}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        return partial(scan_int8, arrays["values"], arrays["scales"])

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        out: F32 = arrays["values"] * arrays["scales"][:, None]
        return out


class Float16:
    """values f16 [n, D]."""

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        with np.errstate(over="ignore"):  # said below, with the setting that helps
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise InvalidInput("a vector is not finite as float16; set the channel's storage to int8")
        return {"values": halves}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        return partial(scan_half, arrays["values"])

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        return arrays["values"].astype(np.float32)


class ProductCodes:
    """values u8 [n, D / 8]; codec: centroids f32 [C, 256, 8].

    The paper has a codebook for every 8 dimensions. A sample under 10,000 documents cannot fill them; then the cells of
    a repetition, whose tokens went through the same projection, share one.
    """

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        groups = values.shape[1] // WIDTH
        shared = repetitions if groups % repetitions == 0 else 1
        return {"centroids": train_codebooks(values, groups if len(values) >= OWN_CODEBOOKS else shared, seed)}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        return {"values": quantise(values, codec["centroids"])}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        return partial(scan_codes, arrays["values"], codec["centroids"])

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        return reconstruct(arrays["values"], codec["centroids"])


class BitCodes:
    """values u8 [n, D / 8 + 8]: faiss' RaBitQ (Gao and Long, SIGMOD 2024), a bit a dimension around the sample's mean.

    No rotation before: at these dimensions its matrix would be larger than most collections.
    """

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {"mean": values.astype(np.float64).mean(axis=0).astype(np.float32)}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        import faiss

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
        out: F32 = _bit_index(arrays["values"], codec["mean"]).reconstruct_n(0, len(arrays["values"]))
        return out


def _bit_index(codes: Array, mean: F32) -> Any:
    faiss: Any = import_module("faiss")
    index = faiss.IndexRaBitQ(len(mean), faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.ascontiguousarray(mean), index.center)
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), index.codes)
    index.ntotal, index.is_trained = len(codes), True
    return index


def _all_scores(index: Any, query: F32) -> F32:
    out = np.empty(index.ntotal, dtype=np.float32)
    scores, rows = index.search(query[None], index.ntotal)
    out[rows[0]] = scores[0]
    return out


STORAGES: dict[str, Storage] = {"int8": Int8(), "float16": Float16(), "pq8": ProductCodes(), "rabitq": BitCodes()}
