"""Sparse vectors to measure with: real ones from a folder, drawn ones, and mixtures where more are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from chamfer.types import SparseVectors

WIDTH = 30_522


def sparse_vectors(folder: Path | None, n: int, n_queries: int) -> tuple[SparseVectors, SparseVectors, str]:
    """(n rows, queries, where they come from)."""
    rng = np.random.default_rng(0)
    if folder is None:
        documents, queries = _drawn(rng, min(n, 20_000), 140), _drawn(rng, n_queries, 37)
    else:
        loaded = [np.load(path) for path in sorted(folder.glob("splade-*.npz"))]
        documents = SparseVectors.concatenate([_read(one, "") for one in loaded])
        each = -(-n_queries // len(loaded))
        asked = [_read(one, "q_") for one in loaded]
        queries = SparseVectors.concatenate(
            [q.take(rng.choice(len(q), min(each, len(q)), replace=False)) for q in asked]
        )
        documents = documents.take(rng.permutation(len(documents))[:n])
    origin = "drawn" if folder is None else "real"
    if n > len(documents):
        documents, origin = _mixed(rng, documents, n), f"mixed {origin}"
    return documents, queries, origin


def _read(stored: Any, prefix: str) -> SparseVectors:
    return SparseVectors(stored[prefix + "weights"], stored[prefix + "terms"], stored[prefix + "offsets"], WIDTH)


def _drawn(rng: np.random.Generator, n: int, terms: int) -> SparseVectors:
    """Rows of terms drawn with Zipf's law and gamma weights."""
    own = [np.unique(np.minimum(rng.zipf(1.3, 2 * terms) * 7, WIDTH - 1))[:terms].astype(np.int32) for _ in range(n)]
    return _ragged(own, [rng.gamma(2.0, 0.3, len(row)).astype(np.float32) + np.float32(0.01) for row in own])


def _mixed(rng: np.random.Generator, real: SparseVectors, n: int) -> SparseVectors:
    """n rows, each seven tenths of one row and three tenths of another, the larger weight where both have a term."""
    terms, weights = [], []
    for _ in range(n):
        row: dict[int, float] = {}
        for place, share in zip(rng.integers(0, len(real), 2), (0.7, 0.3), strict=True):
            span = slice(real.offsets[place], real.offsets[place + 1])
            keep = rng.random(span.stop - span.start) < share
            jitter = np.exp(rng.normal(0, 0.2, int(keep.sum())))
            for term, weight in zip(real.terms[span][keep], real.weights[span][keep] * jitter, strict=True):
                row[int(term)] = max(row.get(int(term), 0.0), float(weight))
        terms.append(np.array(sorted(row), dtype=np.int32))
        weights.append(np.array([row[t] for t in sorted(row)], dtype=np.float32))
    return _ragged(terms, weights)


def _ragged(terms: list[Any], weights: list[Any]) -> SparseVectors:
    offsets = np.zeros(len(terms) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in terms], out=offsets[1:])
    return SparseVectors(np.concatenate(weights), np.concatenate(terms), offsets, WIDTH)
