"""Posting lists: turning a ragged term matrix around."""

from __future__ import annotations

import numpy as np

from chamfer.types import I32, I64, Array


def invert(terms: I64, documents: I64, values: Array, n_terms: int) -> tuple[I64, I32, Array]:
    """(offsets i64 [n_terms+1], documents i32 [Z], values [Z]) by term, documents ascending within one.

    `terms` and `documents` are i64 [Z], documents ascending. Cost O(Z log Z).
    """
    order = np.argsort(terms, kind="stable")
    offsets = np.zeros(n_terms + 1, dtype=np.int64)
    np.cumsum(np.bincount(terms, minlength=n_terms), out=offsets[1:])
    return offsets, documents[order].astype(np.int32), values[order]
