"""Storage `float32`: the encoder's vectors, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array
from chamfer.indexing.kernels.dot import dots
from chamfer.indexing.rows.segment_part import Codec
from chamfer.indexing.rows.storage.protocol import Scan


class Float32:
    """values f32 [n, D]."""

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        if not np.isfinite(values).all():
            raise InvalidInput("a vector holds NaN or infinity")
        return {"values": values.astype(np.float32)}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        return partial(dots, arrays["values"])

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        return arrays["values"].astype(np.float32)
