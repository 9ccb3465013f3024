"""Token codes read back from their bytes, written from the layout's definition (chamfer.indexing.kernels.codes)."""

from __future__ import annotations

import numpy as np


def unpacked_codes(packed: np.ndarray, bits: int, dim: int) -> np.ndarray:
    """Codes f64 [T, D] out of bytes u8 [T, W]."""
    whole = 2 if bits == 3 else bits
    width = -(-dim * whole // 8)
    out = np.empty((len(packed), dim))
    for d in range(dim):
        out[:, d] = (packed[:, d % width] >> (whole * (d // width))) & (2**whole - 1)
        if bits == 3:
            out[:, d] += 4 * ((packed[:, width + d // 8] >> (d % 8)) & 1)
    return out
