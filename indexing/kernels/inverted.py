"""Posting lists: turning a ragged term matrix around, and adding up the lists of a query's terms."""

from __future__ import annotations

import numpy as np

from chamfer.types import F32, I32, I64, Array
from indexing.kernels import _numba


def invert(terms: I64, documents: I64, values: Array, n_terms: int) -> tuple[I64, I32, Array]:
    """(offsets i64 [n_terms+1], documents i32 [Z], values [Z]) by term, documents ascending within one.

    `terms` and `documents` are i64 [Z], documents ascending. Cost O(Z log Z).
    """
    order = np.argsort(terms, kind="stable")
    offsets = np.zeros(n_terms + 1, dtype=np.int64)
    np.cumsum(np.bincount(terms, minlength=n_terms), out=offsets[1:])
    return offsets, documents[order].astype(np.int32), values[order]


def add_bm25(scores: F32, documents: Array, frequencies: Array, norms: F32, weight: float) -> None:
    """Adds weight * tf / (tf + norms[d]) to scores f32 [N] for one posting list; in place. Cost its length.

    With norms = k1 (1 - b + b |d| / mean |d|) and weight = idf this is BM25 as Lucene computes it
    (Kamphuis et al., ECIR 2020, variant "Lucene (accurate)", without the constant factor k1 + 1).
    """
    _numba.add_bm25(scores, documents, frequencies, norms, np.float32(weight))


def add_impacts(scores: F32, documents: Array, impacts: Array, weight: float) -> None:
    """Adds weight * impact to scores f32 [N] for one posting list; in place. Cost its length."""
    _numba.add_impacts(scores, documents, impacts, np.float32(weight))
