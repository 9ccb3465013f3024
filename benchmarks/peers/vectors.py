"""Sparse vectors for benchmarks: real ones from a folder or random ones, extended by mixtures if more are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.types import SparseVectors, ragged_index

WIDTH = 30_522
CHUNK = 20_000  # rows mixed at a time


def sparse_vectors(folder: Path | None, n: int, n_queries: int) -> tuple[SparseVectors, SparseVectors, str]:
    """(n documents, queries, origin of the documents: `real`, `drawn`, `mixed real` or `mixed drawn`)."""
    rng = np.random.default_rng(0)
    if folder is None:
        documents, queries = _drawn(rng, min(n, 20_000), 140), _drawn(rng, n_queries, 37)
    else:
        loaded = [np.load(path) for path in sorted(folder.glob("splade-*.npz"))]
        documents = SparseVectors.concatenate([_read(stored, "") for stored in loaded])
        per_set = -(-n_queries // len(loaded))
        query_sets = [_read(stored, "q_") for stored in loaded]
        queries = SparseVectors.concatenate(
            [q.take(rng.choice(len(q), min(per_set, len(q)), replace=False)) for q in query_sets]
        )
        documents = documents.take(rng.permutation(len(documents))[:n])
    origin = "drawn" if folder is None else "real"
    if n > len(documents):
        documents, origin = _mixed(rng, documents, n), f"mixed {origin}"
    return documents, queries, origin


def _read(stored: Any, prefix: str) -> SparseVectors:
    return SparseVectors(stored[prefix + "weights"], stored[prefix + "terms"], stored[prefix + "offsets"], WIDTH)


def _drawn(rng: np.random.Generator, n: int, terms: int) -> SparseVectors:
    """n rows of at most `terms` terms drawn from a Zipf distribution, with gamma-distributed weights."""
    term_rows = [
        np.unique(np.minimum(rng.zipf(1.3, 2 * terms), WIDTH // 7) * 7)[:terms].astype(np.int32) for _ in range(n)
    ]
    return _ragged(
        term_rows, [rng.gamma(2.0, 0.3, len(row)).astype(np.float32) + np.float32(0.01) for row in term_rows]
    )


def _mixed(rng: np.random.Generator, real: SparseVectors, n: int) -> SparseVectors:
    """n rows, each with 70 % of the terms of one row and 30 % of another; a term of both keeps the larger weight."""
    return SparseVectors.concatenate([_mixture(rng, real, min(CHUNK, n - start)) for start in range(0, n, CHUNK)])


def _mixture(rng: np.random.Generator, real: SparseVectors, n: int) -> SparseVectors:
    keys, weights = [], []
    for share in (0.7, 0.3):
        index, offsets = ragged_index(real.offsets, rng.integers(0, len(real), n))
        selected = rng.random(len(index)) < share
        owners = np.repeat(np.arange(n), np.diff(offsets))[selected]
        keys.append(owners * WIDTH + real.terms[index[selected]])
        weights.append(real.weights[index[selected]] * np.exp(rng.normal(0, 0.2, len(owners))).astype(np.float32))
    key, weight = np.concatenate(keys), np.concatenate(weights)
    order = np.argsort(key)
    distinct, starts = np.unique(key[order], return_index=True)
    offsets = np.searchsorted(distinct, np.arange(n + 1) * WIDTH)
    return SparseVectors(
        np.maximum.reduceat(weight[order], starts), (distinct % WIDTH).astype(np.int32), offsets, WIDTH
    )


def _ragged(terms: list[Any], weights: list[Any]) -> SparseVectors:
    offsets = np.zeros(len(terms) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in terms], out=offsets[1:])
    return SparseVectors(np.concatenate(weights), np.concatenate(terms), offsets, WIDTH)
