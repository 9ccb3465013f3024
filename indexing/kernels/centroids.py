"""Centroids of token vectors: training, the nearest centroid of a token, and centroid scores of documents.

A document's centroid score is its MaxSim with every token replaced by its centroid (PLAID's centroid interaction,
arXiv 2205.09707, section 4.2), here over all documents and in 8 bits: one small matrix product, then one byte
maximum per token. It only ranks candidates for exact MaxSim.
"""

from __future__ import annotations

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Array
from chamfer.indexing.kernels import _native_late, _numba_late

MOST_CENTROIDS = 65_536
_TOKENS_PER_CENTROID = 8  # centroids of fewer tokens generalise badly
_ENOUGH_PER_CENTROID = 32
_ITERATIONS = 8
_BLOCK_BYTES = 16 << 20
_GROUP = 32


def train(tokens: F32, k: int, seed: int) -> F32:
    """At most k, and at most T/8, centroids f32 [K, D] of tokens f32 [T, D], by Lloyd's iterations from random tokens.

    A centroid that loses all its tokens does not move. At most 32 K randomly drawn tokens are used, so that an
    iteration costs at most 32 K^2 D.
    """
    if not 1 <= k <= MOST_CENTROIDS:
        raise InvalidInput(f"{k} centroids, expected 1..{MOST_CENTROIDS}")
    k = max(1, min(k, len(tokens) // _TOKENS_PER_CENTROID))
    if k == 1:
        mean: F32 = tokens.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
        return mean
    draw = np.random.default_rng(seed)
    if len(tokens) > _ENOUGH_PER_CENTROID * k:
        tokens = tokens[np.sort(draw.choice(len(tokens), _ENOUGH_PER_CENTROID * k, replace=False))]
    chosen = np.sort(draw.choice(len(tokens), k, replace=False))
    centroids: F32 = tokens[chosen].astype(np.float32)
    for _ in range(_ITERATIONS):
        ids = assign(tokens, centroids)
        order = np.argsort(ids, kind="stable")
        first = np.flatnonzero(np.diff(ids[order], prepend=-1))
        used = ids[order][first]
        sums = np.add.reduceat(tokens[order].astype(np.float32), first, axis=0)
        centroids[used] = sums / np.bincount(ids, minlength=k)[used, None]
    return centroids


def assign(tokens: Array, centroids: F32) -> I64:
    """The nearest centroid of every token (f32 or f16 [T, D]) by Euclidean distance, i64 [T]. Cost T K D."""
    half_norms = (centroids * centroids).sum(axis=1) / 2
    columns = np.ascontiguousarray(centroids.T)
    ids = np.empty(len(tokens), dtype=np.int64)
    step = max(1, _BLOCK_BYTES // (4 * len(centroids)))
    for start in range(0, len(tokens), step):
        scores = tokens[start : start + step].astype(np.float32) @ columns
        scores -= half_norms
        ids[start : start + step] = scores.argmax(axis=1)
    return ids


def score_table(query: F32, centroids: F32) -> Array:
    """Inner products of query f32 [Tq, D] with the centroids, in 8 bits: u8 [groups of 32 query tokens, K, 32].

    All query tokens share one step. Each is offset by its own lowest product, which shifts the scores of all documents
    with tokens by the same amount. Padding columns beyond the query's tokens are 0 and add nothing.
    """
    products = np.ascontiguousarray(query, dtype=np.float32) @ centroids.T
    lowest = products.min(axis=1, keepdims=True)
    products -= lowest
    products *= 255 / (products.max(initial=0.0) or 1.0)
    products += 0.5
    bytes_ = products.astype(np.uint8).T
    groups = -(-len(query) // _GROUP)
    table = np.zeros((groups, len(centroids), _GROUP), dtype=np.uint8)
    for group in range(groups):
        columns = bytes_[:, group * _GROUP : (group + 1) * _GROUP]
        table[group, :, : columns.shape[1]] = columns
    return table


def scan(table: Array, ids: Array, offsets: I64) -> Array:
    """Centroid scores i32 [N] of documents with centroid ids u16 [T], offsets i64 [N+1], from `score_table`."""
    scores = np.zeros(len(offsets) - 1, dtype=np.int32)
    for part in table:
        if not _native_late.scan_centroids(part, ids, offsets, scores):
            _numba_late.scan_centroids(part, ids, offsets, scores)
    return scores
