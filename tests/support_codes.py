"""Token codes read back from their bytes, written from the layout's definition (chamfer.indexing.kernels.codes)."""

from __future__ import annotations

import numpy as np


def unpacked_codes(packed: np.ndarray, bits: int, dim: int) -> np.ndarray:
    """Codes f64 [T, D] from packed bytes u8 [T, W]."""
    low_bits = 2 if bits == 3 else bits
    width = -(-dim * low_bits // 8)
    codes = np.empty((len(packed), dim))
    for d in range(dim):
        codes[:, d] = (packed[:, d % width] >> (low_bits * (d // width))) & (2**low_bits - 1)
        if bits == 3:
            codes[:, d] += 4 * ((packed[:, width + d // 8] >> (d % 8)) & 1)
    return codes
