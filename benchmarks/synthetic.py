"""Made-up token vectors in any number, for sizes that no collection at hand has.

A document is a stretch of one real document and a stretch of another, with noise on every vector, normalised again:
tokens cluster as real ones do, and no two documents are equal. It says nothing about relevance.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chamfer.core.types import I64, TokenVectors

NOISE = 0.3  # length of the noise on a unit vector
BLOCK = 8192


def mixed(real: TokenVectors, n: int, most_tokens: int, seed: int = 1) -> Iterator[tuple[TokenVectors, I64]]:
    """n documents of at most `most_tokens` vectors f16, half of them from each of two documents; in blocks.

    Beside each block the place among the real vectors i64 that every vector of it comes from.
    """
    half = most_tokens // 2
    for start in range(0, n, BLOCK):
        draw = np.random.default_rng((seed, start))
        size = min(BLOCK, n - start)
        parents = draw.integers(len(real), size=2 * size)
        lengths = np.minimum(np.diff(real.offsets)[parents], half)
        room = np.diff(real.offsets)[parents] - lengths
        first = real.offsets[parents] + (draw.random(2 * size) * (room + 1)).astype(np.int64)
        ends = np.zeros(2 * size + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        origins = np.repeat(first - ends[:-1], lengths) + np.arange(ends[-1])
        values = real.values[origins].astype(np.float32)
        values += draw.standard_normal(values.shape, dtype=np.float32) * np.float32(NOISE / values.shape[1] ** 0.5)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        yield TokenVectors(values.astype(np.float16), np.ascontiguousarray(ends[::2])), origins
