"""Pseudo-relevance feedback: a query's vectors mixed with those of documents that a first ranking put on top.

Pure functions over vectors of one query. Every channel's score is linear in the query's vectors, so that feedback
scores are alpha s(q, d) + beta mean_i s(p_i, d), p_i being the feedback documents' stored vectors (Li et al., TOIS
2023, arXiv 2108.11044; arXiv 2205.00235). Documents are never encoded again, and there are no negatives.

Where queries and documents are encoded differently (FDE, sparse) their vectors differ in length by orders of
magnitude, and alpha and beta would mean nothing. Documents are therefore scaled to the query's length there, as
Anserini's Rocchio scales both to 1; on unit vectors it changes nothing, and `stored` leaves them as the paper does.
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
    """Shares of the query and of the feedback documents' mean. Rocchio's defaults are those of Li et al."""

    alpha: float = 0.4
    beta: float = 0.6

    @classmethod
    def average(cls, k: int) -> Mixture:
        """The mean of the query and k documents: Rocchio with 1/(k+1) and k/(k+1)."""
        return cls(1 / (k + 1), k / (k + 1))

    def trusted(self, trust: float) -> Mixture:
        """The documents' share weakened to trust (0..1) of itself."""
        return Mixture(self.alpha, self.beta * trust)


def standout(scores: F32, k: int) -> float:
    """How far the first k of a ranking's falling scores f32 [n] stand out: (mean - all's mean) / deviation (ddof 0).

    A predictor of the kind of NQC and WIG (Shtok et al., TOIS 2012). 0 where nothing stands out: no more than k
    scores, or equal ones. At most sqrt(n / k - 1).
    """
    values = scores.astype(np.float64)
    if not 0 < k < len(values) or values.max() == values.min():
        return 0.0
    return float((values[:k].mean() - values.mean()) / values.std())


def trust(standing: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, straight between, in thousandths: how much of beta a ranking deserves."""
    if high <= low:
        return 1.0 if standing >= high else 0.0
    return round(min(1.0, max(0.0, (standing - low) / (high - low))), 3)


def rocchio(query: F32, documents: F32, mixture: Mixture, length: Length = "query") -> F32:
    """alpha q + beta mean(p_i): f32 [D] from a query f32 [D] and documents f32 [k, D]; the query itself for k = 0.

    Never normalised again. Sums are taken in f64 in the order of the documents and rounded once.
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
    """Rocchio on one sparse query and k documents; only the `terms` heaviest of the documents' mean are added.

    Among equal weights the smaller term is kept. The query's own terms are always kept.
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

    P(t | R) is the sum over documents of s_i * w_it / sum_t w_it, its `terms` largest made to sum to 1; s_i are the
    ranking's scores, all equal if one is not positive. original = 1 gives the query itself. `trust` weakens the rest.
    """
    added = (1.0 - original) * trust
    if not len(documents) or added == 0:
        return query
    belief = scores.astype(np.float64) if (scores > 0).all() else np.ones(len(documents))
    masses = np.array([weights.sum(dtype=np.float64) for _, weights in _rows(documents)])
    model = _heaviest(_weighted_sum(documents, belief / np.maximum(masses, 1e-30)), terms)
    mass = float(query.weights.sum(dtype=np.float64))
    scaled = model[0], model[1] * mass / max(float(model[1].sum()), 1e-30)
    return _mixed(query, scaled, Mixture(1.0 - added, added), terms)


def expand_tokens(
    query: F32, documents: TokenVectors, commonness: Callable[[F32], F64], beta: float, clusters: int, vectors: int
) -> F32:
    """Query token vectors f32 [Tq, D] and up to `vectors` more, from clusters of the feedback documents' tokens.

    Each document is clustered to at most `clusters` means (CRISP; `chamfer.models.networks.token_pooling`), brought to
    length 1. Their rarity is 1 - commonness, how well an average document of the collection matches them; the rarest
    are taken with weights w_i = beta Tq r_i / sum r, so that MaxSim becomes MaxSim(q, d) + beta Tq * a mean of max_j
    <c_i, d_j> weighted by rarity. After ColBERT-PRF (Wang et al., ICTIR 2021), whose rarity is the idf of the nearest
    token.
    """
    if not len(query) or beta == 0:
        return query
    centres = [
        means(tokens, assign(tokens, clusters)) if len(tokens) > clusters else tokens
        for start, stop in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
        if len(tokens := np.ascontiguousarray(documents.values[start:stop], dtype=np.float32))
    ]
    if not centres:
        return query
    found = np.concatenate(centres)
    found /= np.maximum(np.sqrt(np.square(found).sum(axis=1, keepdims=True)), np.float32(1e-12))
    rarity = np.clip(1.0 - commonness(found), 0.0, 1.0)
    chosen = np.argsort(-rarity, kind="stable")[:vectors]
    total = float(rarity[chosen].sum())
    if not total > 0:
        return query
    weights = beta * len(query) * rarity[chosen] / total
    return np.concatenate([query, (found[chosen] * weights[:, None]).astype(np.float32)])


_Terms = tuple[Array, F64]  # terms ascending, weights


def _mixed(query: SparseVectors, added: _Terms, mixture: Mixture, terms: int) -> SparseVectors:
    names, weights = _heaviest(added, terms)
    merged, places = np.unique(np.concatenate([query.terms, names]), return_inverse=True)
    parts = np.concatenate([mixture.alpha * query.weights.astype(np.float64), mixture.beta * weights])
    return _one_row(merged, np.bincount(places, parts, len(merged)).astype(np.float32), query.vocabulary)


def _weighted_sum(documents: SparseVectors, shares: F64) -> _Terms:
    """sum_i shares_i p_i, added up in the order of the documents."""
    names, places = np.unique(documents.terms, return_inverse=True)
    weights: F64 = documents.weights.astype(np.float64) * np.repeat(shares, np.diff(documents.offsets))
    return names, np.bincount(places, weights, len(names)).astype(np.float64)


def _heaviest(found: _Terms, most: int) -> _Terms:
    names, weights = found
    kept = np.sort(np.argsort(-weights, kind="stable")[:most])
    return names[kept], weights[kept]


def _one_row(terms: Array, weights: F32, vocabulary: int) -> SparseVectors:
    """A sparse query of the terms whose weight is above 0."""
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
