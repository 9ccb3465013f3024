"""Synthetic token vectors, for collections larger than the real ones at hand.

A document joins a span of one real document and a span of another, with noise on every vector, normalised again. Its
tokens therefore cluster like real ones, and no two documents are equal. Relevance cannot be measured with them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chamfer.core.types import I64, TokenVectors

NOISE = 0.3  # length of the noise on a unit vector
BLOCK = 8192


def mixed(real: TokenVectors, n: int, most_tokens: int, seed: int = 1) -> Iterator[tuple[TokenVectors, I64]]:
    """n documents of at most `most_tokens` vectors f16, half from each of two real documents, in blocks.

    Yields (block, origins i64 [T]): the index of the real vector that each vector of the block was made from.
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
