"""Token pooling: CRISP's k-means (arXiv 2505.11471, section 3), Ward's clusters, and baselines.

Training and encoding call the same `labels_of`. The paper leaves initialisation, iterations and empty clusters open.
Here centres are chosen greedily (the token that lowers the sum of squared distances most), followed by at most 20 Lloyd
iterations, all computed from the matrix of inner products; there is no random draw, and the order of the tokens does
not matter. A cluster that loses all its tokens is dropped rather than refilled. CRISP's means are not normalised again
unless asked for. k is capped at the number of distinct tokens, and a share of L tokens is max(1, floor(share L)).

An encoder that was not trained for pooling needs other means. They are normalised again, because a mean of dissimilar
tokens is short and wins no maximum, and taken over Ward's clusters (JASA 1963: merge the two clusters whose union adds
least variance), which keep apart the few unusual tokens that decide a ranking. docs/experiments.md has measurements.

Tokens may have weights: clusters then minimise weighted squared distances and means are weighted. With idf as weight,
function words share a few vectors, and the words that queries contain keep theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, TokenVectors
from chamfer.models.networks import _numba_clustering

MAX_ITERATIONS = 20
MIN_TOKEN_WEIGHT = 1e-4  # a cluster of tokens of weight 0 would have no mean
_NOTATION = (
    "expected cQxD (k-means to Q query and D document vectors, 0: no pooling on that side), cQxPp (documents to P "
    "percent), cP (both sides to P percent), w instead of c (Ward's clusters), kN (every N-th vector) or tailQxD (the "
    "last Q and D vectors)"
)
Kind = Literal["cluster", "share", "spacing", "tail"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """The rule of one side, queries or documents.

    size is a number of vectors for cluster and tail (0: all), the step for spacing, and a percentage for share; `ward`
    chooses Ward's clusters instead of k-means for cluster and share.
    """

    kind: Kind
    size: int
    ward: bool = False


@dataclass(frozen=True, slots=True)
class PoolingRules:
    """The rules of both sides; `name` is the notation they were parsed from."""

    name: str
    query: Pooling
    document: Pooling
    normalised: bool = False


def parse_pooling(name: str) -> PoolingRules:
    """Parses c4x8, c8x32, c25, c50, w0x32, w0x90p, k2, tail8x32 and the like. InvalidInput otherwise.

    Means of Ward's clusters (w) are normalised again, those of k-means (c) only with an n at the end: c8x32n. A
    normalised mean has the mean length of the vectors it averages: 1 for unit vectors, the mean weight for query tokens
    whose length is their weight.
    """
    if match := re.fullmatch(r"(c|w|tail(?!.*p))(\d+)x(\d+)(p?)(n?)", name):
        kind: Kind = "tail" if match[1] == "tail" else "cluster"
        query, document = (Pooling(kind, int(size), match[1] == "w") for size in match.group(2, 3))
        if match[4]:
            document = replace(document, kind="share")
    elif match := re.fullmatch(r"([cwk])0*([1-9]\d*)(n?)", name):
        query = document = Pooling("spacing" if match[1] == "k" else "share", int(match[2]), match[1] == "w")
    else:
        raise InvalidInput(f"pooling {name!r} is not valid; {_NOTATION}")
    if document.kind == "share" and not 1 <= document.size <= 100:
        raise InvalidInput(f"pooling {name!r} is not valid; {_NOTATION}")
    return PoolingRules(name, query, document, match[1] == "w" or name.endswith("n"))


def pool(tokens: TokenVectors, rule: Pooling, *, normalised: bool = False) -> TokenVectors:
    """The token vectors f32 [T, D] of N texts, each text pooled by the rule, with its weights if it has any.

    The result for a text depends on that text alone, to the bit. InvalidInput for a vector that is not finite.
    """
    if not (finite := np.isfinite(tokens.values).all(axis=1)).all():
        raise InvalidInput(
            f"token vector {int(np.argmin(finite))} of {len(tokens.values)} is not finite and cannot be pooled; check "
            "the encoder (models.encoder, models.device)"
        )
    matrices = [
        pool_one(
            np.ascontiguousarray(tokens.values[start:stop], dtype=np.float32),
            rule,
            normalised=normalised,
            weights=None if tokens.weights is None else tokens.weights[start:stop],
        )
        for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
    np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
    values = np.concatenate([*matrices, np.empty((0, tokens.values.shape[1]), dtype=np.float32)])
    return TokenVectors(values, offsets)


def pool_one(tokens: F32, rule: Pooling, *, normalised: bool = False, weights: F32 | None = None) -> F32:
    """One text's vectors f32 [L, D] and weights f32 [L] -> f32 [m, D], m <= L, and m >= 1 if L >= 1."""
    labels = labels_of(tokens, rule, weights)
    if labels is None:
        return tokens
    pooled = labels >= 0
    pooled_weights = None if weights is None else weights[pooled]
    return means(tokens[pooled], labels[pooled], normalised=normalised, weights=pooled_weights)


def labels_of(tokens: F32, rule: Pooling, weights: F32 | None = None) -> I64 | None:
    """The pooled vector that each token belongs to, i64 [L], -1 for none; None if all tokens stay as they are."""
    n = len(tokens)
    numbers = np.arange(n, dtype=np.int64)
    if rule.kind == "spacing" and n:
        return np.where(numbers % rule.size == 0, numbers // rule.size, -1)
    if rule.kind == "tail":
        return np.maximum(numbers - (n - rule.size), -1) if 0 < rule.size < n else None
    k = max(1, n * rule.size // 100) if rule.kind == "share" else rule.size
    if not 0 < k < n or rule.kind == "spacing":
        return None
    return assign(tokens, k, ward=rule.ward, weights=weights)


def assign(tokens: F32, k: int, *, ward: bool = False, weights: F32 | None = None) -> I64:
    """The cluster of every token vector, i64 [L], numbered 0..m-1 with m <= k, every number used.

    tokens f32 [L, D] finite, weights f32 [L] > 0 (None: 1). Cost L^2 (D + k + iterations) by k-means, L^2 D by Ward.
    InvalidInput for k below 1.
    """
    if k < 1:
        raise InvalidInput(f"clustering into {k} clusters; expected at least 1")
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    products = tokens.astype(np.float64) @ tokens.T.astype(np.float64)
    wide = np.ones(len(tokens)) if weights is None else weights.astype(np.float64)
    labels = (
        _numba_clustering.ward(products, wide, k)
        if ward
        else _numba_clustering.lloyd(products, wide, k, MAX_ITERATIONS)
    )
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def means(tokens: F32, labels: I64, *, normalised: bool = False, weights: F32 | None = None) -> F32:
    """The (weighted) mean f32 [m, D] of each cluster's tokens; normalised: rescaled to the mean of their lengths."""
    member = np.zeros((int(labels.max()) + 1, len(tokens)), dtype=np.float32)
    member[labels, np.arange(len(tokens))] = 1 if weights is None else weights
    member /= member.sum(axis=1, keepdims=True)
    centres: F32 = member @ tokens
    if normalised:
        lengths = member @ np.linalg.norm(tokens, axis=1, keepdims=True)
        centres *= lengths / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return centres
