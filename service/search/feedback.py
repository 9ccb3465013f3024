"""Pseudo-relevance feedback: mixes a query's vectors with those of the top documents of a first ranking.

Pure functions over the vectors of one query. The score of every channel is linear in the query's vectors, so the score
after feedback is alpha s(q, d) + beta mean_i s(p_i, d), where p_i are the stored vectors of the feedback documents (Li
et al., TOIS 2023, arXiv 2108.11044; arXiv 2205.00235). Documents are never encoded again, and no negative documents are
used.

Where queries and documents are encoded differently (FDE, sparse), the lengths of their vectors differ by orders of
magnitude, and alpha and beta would not be comparable. Documents are therefore scaled to the length of the query, as
Anserini's Rocchio scales both to 1. Unit vectors are unaffected; length "stored" leaves vectors as they are, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chamfer.core.types import F32, Array, SparseVectors, TokenVectors
from chamfer.models.networks.token_pooling import assign, means

F64 = NDArray[np.float64]
Length = Literal["query", "stored"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The weights of the query and of the feedback documents' mean; the defaults are those of Li et al. for Rocchio."""

    alpha: float = 0.4
    beta: float = 0.6

    @classmethod
    def average(cls, k: int) -> Mixture:
        """The mean of the query and k documents: Rocchio with 1/(k+1) and k/(k+1)."""
        return cls(1 / (k + 1), k / (k + 1))

    def weakened(self, trust: float) -> Mixture:
        """The mixture with the documents' weight multiplied by trust (0..1)."""
        return Mixture(self.alpha, self.beta * trust)


def standout(scores: F32, k: int) -> float:
    """How far the first k of a ranking's descending scores f32 [n] stand out, as a z-score:
    (mean of the first k - mean of all) / standard deviation of all (ddof 0).

    A query performance predictor like NQC and WIG (Shtok et al., TOIS 2012). 0 if there are at most k scores, or if
    all are equal. At most sqrt(n / k - 1).
    """
    values = scores.astype(np.float64)
    if not 0 < k < len(values) or values.max() == values.min():
        return 0.0
    return float((values[:k].mean() - values.mean()) / values.std())


def trust(z: float, low: float, high: float) -> float:
    """The factor 0..1 for beta: 0 up to z = low, 1 from z = high, linear in between, rounded to three digits."""
    if high <= low:
        return 1.0 if z >= high else 0.0
    return round(min(1.0, max(0.0, (z - low) / (high - low))), 3)


def rocchio(query: F32, documents: F32, mixture: Mixture, length: Length = "query") -> F32:
    """alpha q + beta mean(p_i): f32 [D] from a query f32 [D] and documents f32 [k, D]; alpha q for k = 0.

    The result is not normalised. Sums are computed in f64 in the order of the documents and rounded once.
    """
    if not len(documents) or mixture.beta == 0:
        return _scaled(query, mixture.alpha)
    values = documents.astype(np.float64)
    if length == "query":
        values *= _length(query) / np.maximum(np.sqrt(np.square(values).sum(axis=1, keepdims=True)), 1e-30)
    mixed: F64 = mixture.alpha * query.astype(np.float64) + mixture.beta * values.mean(axis=0)
    return mixed.astype(np.float32)


def sparse_rocchio(
    query: SparseVectors, documents: SparseVectors, mixture: Mixture, terms: int, length: Length = "query"
) -> SparseVectors:
    """Rocchio on one sparse query and k documents; only the `terms` heaviest terms of the documents' mean are added.

    Among equal weights the smaller term is kept. The terms of the query are always kept.
    """
    if not len(documents) or mixture.beta == 0:
        return _one_row(query.terms, query.weights * np.float32(mixture.alpha), query.vocabulary)
    shares = np.full(len(documents), 1 / len(documents))
    if length == "query":
        norms = np.sqrt([np.square(weights, dtype=np.float64).sum() for _, weights in _rows(documents)])
        shares *= _length(query.weights) / np.maximum(norms, 1e-30)
    return _mixed(query, _weighted_sum(documents, shares), mixture, terms)


def rm3(
    query: SparseVectors, documents: SparseVectors, scores: F32, original: float, terms: int, trust: float = 1.0
) -> SparseVectors:
    """RM3 (Abdul-Jaleel et al., TREC 2004): original * P(t | q) + (1 - original) * P(t | R), times the query's mass.

    P(t | R) is the sum over documents of s_i * w_it / sum_t w_it, of which the `terms` largest are kept and normalised
    to sum to 1. s_i are the scores of the ranking, or all equal if any of them is not positive. original = 1 gives the
    query itself. `trust` multiplies 1 - original.
    """
    added = (1.0 - original) * trust
    if not len(documents) or added == 0:
        return query
    document_weights = scores.astype(np.float64) if (scores > 0).all() else np.ones(len(documents))
    masses = np.array([weights.sum(dtype=np.float64) for _, weights in _rows(documents)])
    model = _heaviest(_weighted_sum(documents, document_weights / np.maximum(masses, 1e-30)), terms)
    mass = float(query.weights.sum(dtype=np.float64))
    scaled = model[0], model[1] * mass / max(float(model[1].sum()), 1e-30)
    return _mixed(query, scaled, Mixture(1.0 - added, added), terms)


def expand_tokens(
    query: F32, documents: TokenVectors, commonness: Callable[[F32], F64], beta: float, clusters: int, vectors: int
) -> F32:
    """Query token vectors f32 [Tq, D] and up to `vectors` more, from clusters of the feedback documents' tokens.

    Each document is clustered to at most `clusters` means (CRISP; `chamfer.models.networks.token_pooling`), which are
    normalised to length 1. The rarity r_i of a mean is 1 - commonness, where commonness is how well an average document
    of the collection matches it. The rarest are added with weights w_i = beta Tq r_i / sum r, so that MaxSim becomes
    MaxSim(q, d) + beta Tq * (mean of max_j <c_i, d_j>, weighted by rarity). After ColBERT-PRF (Wang et al., ICTIR
    2021), which takes the idf of the nearest token as rarity.
    """
    if not len(query) or beta == 0:
        return query
    per_document = [
        means(tokens, assign(tokens, clusters)) if len(tokens) > clusters else tokens
        for start, stop in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
        if len(tokens := np.ascontiguousarray(documents.values[start:stop], dtype=np.float32))
    ]
    if not per_document:
        return query
    centroids = np.concatenate(per_document)
    centroids /= np.maximum(np.sqrt(np.square(centroids).sum(axis=1, keepdims=True)), np.float32(1e-12))
    rarity = np.clip(1.0 - commonness(centroids), 0.0, 1.0)
    chosen = np.argsort(-rarity, kind="stable")[:vectors]
    total = float(rarity[chosen].sum())
    if not total > 0:
        return query
    weights = beta * len(query) * rarity[chosen] / total
    return np.concatenate([query, (centroids[chosen] * weights[:, None]).astype(np.float32)])


_WeightedTerms = tuple[Array, F64]  # (terms ascending, their weights)


def _mixed(query: SparseVectors, added: _WeightedTerms, mixture: Mixture, terms: int) -> SparseVectors:
    added_terms, added_weights = _heaviest(added, terms)
    merged, positions = np.unique(np.concatenate([query.terms, added_terms]), return_inverse=True)
    weights = np.concatenate([mixture.alpha * query.weights.astype(np.float64), mixture.beta * added_weights])
    return _one_row(merged, np.bincount(positions, weights, len(merged)).astype(np.float32), query.vocabulary)


def _weighted_sum(documents: SparseVectors, shares: F64) -> _WeightedTerms:
    """sum_i shares_i p_i, summed in the order of the documents."""
    terms, positions = np.unique(documents.terms, return_inverse=True)
    weights: F64 = documents.weights.astype(np.float64) * np.repeat(shares, np.diff(documents.offsets))
    return terms, np.bincount(positions, weights, len(terms)).astype(np.float64)


def _heaviest(weighted: _WeightedTerms, limit: int) -> _WeightedTerms:
    terms, weights = weighted
    kept = np.sort(np.argsort(-weights, kind="stable")[:limit])
    return terms[kept], weights[kept]


def _one_row(terms: Array, weights: F32, vocabulary: int) -> SparseVectors:
    """A sparse query of the terms whose weight is above 0, the others dropped."""
    kept = weights > 0
    offsets = np.array([0, np.count_nonzero(kept)], dtype=np.int64)
    return SparseVectors(weights[kept], terms[kept].astype(np.int32), offsets, vocabulary)


def _rows(vectors: SparseVectors) -> list[tuple[Array, F32]]:
    spans = zip(vectors.offsets[:-1], vectors.offsets[1:], strict=True)
    return [(vectors.terms[a:b], vectors.weights[a:b]) for a, b in spans]


def _scaled(values: F32, factor: float) -> F32:
    return values if factor == 1 else (values.astype(np.float64) * factor).astype(np.float32)


def _length(values: F32) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).sum()))
