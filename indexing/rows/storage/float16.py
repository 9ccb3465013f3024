"""Storage `float16`: two bytes per dimension."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array
from chamfer.indexing.kernels.scan import scan_half
from chamfer.indexing.rows.segment_part import Codec
from chamfer.indexing.rows.storage.protocol import Scan


class Float16:
    """values f16 [n, D]."""

    def learn(self, values: F32, repetitions: int, seed: int) -> Codec:
        return {}

    def pack(self, values: F32, codec: Codec) -> dict[str, Array]:
        with np.errstate(over="ignore"):  # reported below, with the settings that help
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise InvalidInput(
                f"a vector is not finite as float16 (largest magnitude {np.abs(values).max():.3g}, expected at most "
                f"{np.finfo(np.float16).max:g}); set the channel's storage to float32 or int8"
            )
        return {"values": halves}

    def scanner(self, arrays: Mapping[str, Array], codec: Codec) -> Scan:
        return partial(scan_half, arrays["values"])

    def unpack(self, arrays: Mapping[str, Array], codec: Codec) -> F32:
        return arrays["values"].astype(np.float32)
