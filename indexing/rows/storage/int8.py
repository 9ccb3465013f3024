"""Storage `int8`: one byte per dimension and one scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from chamfer.core.types import F32, Array
from chamfer.indexing.kernels.scan import quantise_rows, scan_int8
from chamfer.indexing.rows.segment_part import Codec
from chamfer.indexing.rows.storage.protocol import Scan


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
        vectors: F32 = arrays["values"] * arrays["scales"][:, None]
        return vectors
