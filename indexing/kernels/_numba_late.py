"""Compiled twins of late.c: centroid scores of documents, and decoding of residuals."""

from __future__ import annotations

from typing import Any

import numpy as np

from chamfer.core.compilation import compiled


@compiled()
def scan_centroids(table: Any, ids: Any, offsets: Any, out: Any) -> None:
    """Adds to out i32 [N]: over the columns of table u8 [K, 32], the largest entry among the document's ids."""
    best = np.empty(table.shape[1], np.uint8)
    for row in range(len(out)):
        best[:] = 0
        for t in range(offsets[row], offsets[row + 1]):
            entry = table[ids[t]]
            for i in range(len(best)):
                best[i] = entry[i] if entry[i] > best[i] else best[i]
        total = np.int32(0)
        for i in range(len(best)):
            total += np.int32(best[i])
        out[row] += total


@compiled()
def decode(codes: Any, ids: Any, scales: Any, lowest: Any, step: Any, bits: Any, tokens: Any) -> Any:
    """f32 [len(tokens), D]: scales f32 [len(tokens)] times (lowest[id] + step * code); no ids: one lowest."""
    whole = 2 if bits == 3 else bits
    width = (len(step) * whole + 7) // 8
    mask = (1 << whole) - 1
    decoded = np.empty((len(tokens), len(step)), np.float32)
    for i in range(len(tokens)):
        token = tokens[i]
        start = lowest[ids[token]] if len(ids) else lowest[0]
        for d in range(len(step)):
            code = (codes[token, d % width] >> (whole * (d // width))) & mask
            if bits == 3:
                code |= ((codes[token, width + d // 8] >> (d % 8)) & 1) << 2
            decoded[i, d] = scales[i] * (start[d] + np.float32(code) * step[d])
    return decoded
