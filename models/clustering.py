"""Fewer token vectors a text: k-means means (CRISP, arXiv 2505.11471, section 3), and the baselines beside them.

Training and encoding call the same `assign`. The paper leaves initialisation, iterations and empty clusters open;
here they are: centres are chosen greedily (the token whose choice lowers the sum of squared distances most), then at
most 20 Lloyd iterations, all from the matrix of inner products; no random draw, no dependence on the order of the
tokens. A cluster that loses all its tokens is dropped, so that no vector is made up. Means are not normalised again
unless asked. k is capped at the number of distinct tokens, and a share of L tokens is max(1, floor(share L)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chamfer.errors import InvalidInput
from chamfer.types import F32, I64, TokenVectors
from models import _numba

MAX_ITERATIONS = 20
_HOW = (
    "expected cQxD (k-means to Q query and D document vectors, 0 leaves a side as it is), cP (k-means to P percent), "
    "kN (every N-th vector) or tailQxD (the last ones)"
)


@dataclass(frozen=True, slots=True)
class Pooling:
    """One rule for a side. `size` counts vectors for cluster and tail (0: all), is the step for spacing, and a
    percentage for share."""

    kind: Literal["cluster", "share", "spacing", "tail"]
    size: int


@dataclass(frozen=True, slots=True)
class PoolingRules:
    """The rules of both sides; `name` is what was parsed."""

    name: str
    query: Pooling
    document: Pooling
    normalised: bool = False


def parse_pooling(name: str) -> PoolingRules:
    """c4x8, c8x32, c25, c50, k2, k4, tail8x32; an n at the end normalises means again. InvalidInput otherwise."""
    match = re.fullmatch(r"(c|tail)(\d+)x(\d+)(n?)", name)
    if match:
        kind: Literal["cluster", "tail"] = "cluster" if match[1] == "c" else "tail"
        return PoolingRules(name, Pooling(kind, int(match[2])), Pooling(kind, int(match[3])), bool(match[4]))
    match = re.fullmatch(r"([ck])(\d+)(n?)", name)
    if match and int(match[2]) >= 1 and (match[1] == "k" or int(match[2]) <= 100):
        rule = Pooling("share" if match[1] == "c" else "spacing", int(match[2]))
        return PoolingRules(name, rule, rule, bool(match[3]))
    raise InvalidInput(f"pooling {name!r} means nothing; {_HOW}")


def pool(tokens: TokenVectors, rule: Pooling, *, normalised: bool = False) -> TokenVectors:
    """The token vectors f32 [T, D] of N texts, each pooled by the rule. A text's bits depend on the text alone."""
    matrices = [
        pool_one(np.ascontiguousarray(tokens.values[start:stop], dtype=np.float32), rule)
        for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
    np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
    values = np.concatenate([*matrices, np.empty((0, tokens.values.shape[1]), dtype=np.float32)])
    if normalised:
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return TokenVectors(values, offsets)


def pool_one(tokens: F32, rule: Pooling) -> F32:
    """One text's vectors f32 [L, D] -> f32 [m, D], m <= L, and m >= 1 where L is."""
    n = len(tokens)
    if rule.kind == "spacing":
        return tokens[:: rule.size]
    if rule.kind == "tail":
        return tokens[-rule.size :] if rule.size else tokens
    k = max(1, n * rule.size // 100) if rule.kind == "share" else rule.size
    if not 0 < k < n:
        return tokens
    return means(tokens, assign(tokens, k))


def assign(tokens: F32, k: int) -> I64:
    """The cluster of every token vector, i64 [L], numbered 0..m-1 with m <= k, every number used.

    tokens f32 [L, D] finite. Cost L^2 (D + k + iterations). Raises InvalidInput for k below 1.
    """
    if k < 1:
        raise InvalidInput(f"k-means into {k} clusters; expected at least 1")
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    labels = _numba.lloyd(tokens.astype(np.float64) @ tokens.T.astype(np.float64), k, MAX_ITERATIONS)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def means(tokens: F32, labels: I64) -> F32:
    """The mean f32 [m, D] of the tokens of each cluster."""
    member = np.zeros((int(labels.max()) + 1, len(tokens)), dtype=np.float32)
    member[labels, np.arange(len(tokens))] = 1
    out: F32 = (member @ tokens) / member.sum(axis=1, keepdims=True)
    return out
