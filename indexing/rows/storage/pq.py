"""Storage `pq8`: product quantisation, one byte per 8 dimensions (PQ-256-8 of MUVERA, arXiv 2405.19504, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from chamfer.core.types import F32, Array
from chamfer.indexing.kernels.product import WIDTH, quantise, reconstruct, scan_codes, train_codebooks
from chamfer.indexing.rows.segment_part import Codec
from chamfer.indexing.rows.storage.protocol import Scan

OWN_CODEBOOKS = 10_000  # sampled documents needed to train a separate codebook for every group of dimensions


class ProductCodes:
    """values u8 [n, D / 8]; codec: centroids f32 [C, 256, 8].

    The paper has a codebook for every 8 dimensions. A sample of fewer than 10,000 documents cannot fill them; then the
    cells of a repetition, whose tokens went through the same projection, share one.
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
