"""The features that mining adds to a pool: text overlap, twins, clusters, modality and judge scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from chamfer.core.errors import ChamferError
from chamfer.core.protocols import Pair, PairReranker, Reranker
from chamfer.core.types import F32, DenseVectors, Query, VectorKind
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.families.dense import DenseRetriever
from chamfer.mining.negative_filters import nearest_clusters
from chamfer.mining.pool import Pool
from chamfer.mining.text_overlap import TermCache, jaccard, overlap

CLUSTER_SAMPLE = 20_000
PairScorer = Callable[[Sequence[Pair]], F32]
"""Scores f32 [n] of n pairs; NaN marks a pair that could not be scored."""


def add_text_features(pools: Sequence[Pool], cache: TermCache) -> None:
    """Adds `overlap` (share of the query's terms in a candidate) and `duplicate` (highest Jaccard with a positive)."""
    for pool in pools:
        query_terms = cache.query(pool.query.text)
        positives = [cache.shingles(document) for document in pool.positives]
        pool.features["overlap"] = _column(overlap(query_terms, cache.terms(d)) for d in pool.documents)
        pool.features["duplicate"] = _column(
            max((jaccard(cache.shingles(d), positive) for positive in positives), default=0.0) for d in pool.documents
        )


def stored_vectors(pools: Sequence[Pool], collection: Collection, vectors: DenseRetriever) -> list[F32]:
    """The stored dense vectors of each pool's candidates, f32 [n, D], unit length; each distinct one is read once."""
    index: dict[str, int] = {}
    pool_indices = [[index.setdefault(d.doc_id, len(index)) for d in pool.documents] for pool in pools]
    distinct = unit(vectors.vectors(collection.rows(list(index))).values)
    return [distinct[indices] for indices in pool_indices]


def add_twins(pools: Sequence[Pool], stored: Sequence[F32]) -> None:
    """Adds `twin`: the highest cosine of the candidate with a positive, between stored vectors."""
    for pool, vectors in zip(pools, stored, strict=True):
        cosines = vectors @ vectors[pool.positive].T
        pool.features["twin"] = cosines.max(axis=1, initial=-1.0).astype(np.float32)


def add_modality(pools: Sequence[Pool], name: str) -> None:
    """Adds `modality`: 0 if the candidate's metadata field `name` has the value of a positive's, else 1."""
    for pool in pools:
        wanted = {document.metadata.get(name) for document in pool.positives}
        pool.features["modality"] = _column(float(d.metadata.get(name) not in wanted) for d in pool.documents)


def add_judge_scores(pools: Sequence[Pool], score_pairs: PairScorer) -> None:
    """Adds `judge`: the score of every pair, logits as probabilities; NaN where the judge returned no score."""
    pairs = [(pool.query, document) for pool in pools for document in pool.documents]
    scores = score_pairs(pairs)
    start = 0
    for pool in pools:
        pool.features["judge"] = scores[start : start + len(pool)]
        start += len(pool)


def pair_scorer(judge: Reranker, cache_bytes: int = 0) -> PairScorer:
    """A function that scores pairs with any reranker; whether the reranker takes pairs or lists is decided here, once.

    Logits become probabilities, so that a margin means the same for all queries. For a listwise reranker the pairs of
    one query must be consecutive. A pair that the reranker cannot score is NaN; errors that concern the reranker as a
    whole (unavailable, overloaded, ...) are raised. With `cache_bytes`, a repeated pair is scored once, except by a
    listwise reranker, whose scores depend on the list.
    """
    score: PairScorer
    if isinstance(judge, PairReranker):
        score = partial(_score_singly, _cached(judge, cache_bytes) if cache_bytes else judge)
    else:
        score = partial(_score_lists, judge)
    return (lambda pairs: _sigmoid(score(pairs))) if judge.score_kind == "logit" else score


def _cached(judge: PairReranker, n_bytes: int) -> PairReranker:
    from chamfer.models.rerankers.score_cache import CachedReranker, ScoreCache

    return CachedReranker(judge, ScoreCache(n_bytes))


def _score_singly(judge: PairReranker, pairs: Sequence[Pair]) -> F32:
    from chamfer.service.search.pair_scoring import SHARED_ERRORS, score_each

    outcomes = score_each(judge, pairs)
    for outcome in outcomes:
        if isinstance(outcome, SHARED_ERRORS):
            raise outcome
    return _column(np.nan if isinstance(outcome, ChamferError) else outcome for outcome in outcomes)


def _score_lists(judge: Reranker, pairs: Sequence[Pair]) -> F32:
    scores = np.empty(len(pairs), dtype=np.float32)
    for start, stop in _runs([query.query_id for query, _ in pairs]):
        scores[start:stop] = judge.score(pairs[start][0], [document for _, document in pairs[start:stop]])
    return scores


@dataclass(frozen=True, slots=True)
class Clusters:
    """k-means over a sample of the collection's dense vectors: centres f32 [C, D], unit length."""

    centres: F32

    @classmethod
    def of(cls, vectors: DenseRetriever, rows: int, count: int, seed: int) -> Clusters:
        """Clusters at most CLUSTER_SAMPLE rows with Lloyd's algorithm, initialised by k-means++ (scipy)."""
        from scipy.cluster.vq import kmeans2

        rng = np.random.default_rng(seed)
        sample = np.sort(rng.choice(rows, size=min(rows, CLUSTER_SAMPLE), replace=False))
        values = unit(vectors.vectors(sample.astype(np.int64)).values)
        centres, _ = kmeans2(values, min(count, len(values)), minit="++", rng=rng, missing="warn")
        return cls(unit(np.asarray(centres, dtype=np.float32)))

    def add_to(self, pools: Sequence[Pool], stored: Sequence[F32], queries: F32) -> None:
        """Adds `cluster`: the rank, from 1, of the candidate's cluster among all by similarity to the query."""
        for pool, vectors, query in zip(pools, stored, unit(queries), strict=True):
            clusters, cluster_ranks = nearest_clusters(vectors, query[None], self.centres)
            pool.features["cluster"] = cluster_ranks[0, clusters].astype(np.float32)


def dense_of(collection: Collection) -> DenseRetriever | None:
    """The retriever of the collection's dense channel; None without such a channel."""
    for channel in collection.channels.values():
        if isinstance(channel.retriever, DenseRetriever):
            return channel.retriever
    return None


def query_vectors(encoder: object, queries: Sequence[Query]) -> F32:
    """Dense vectors f32 [Q, D] of the queries."""
    vectors = encoder.encode_queries(queries, [VectorKind.DENSE]).vectors(VectorKind.DENSE)  # type: ignore[attr-defined]
    assert isinstance(vectors, DenseVectors)
    return np.asarray(vectors.values, dtype=np.float32)


def unit(values: F32) -> F32:
    """The rows scaled to unit length; a zero row stays zero."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def _column(values: object) -> F32:
    return np.fromiter(values, dtype=np.float32)  # type: ignore[call-overload,no-any-return]


def _sigmoid(logits: F32) -> F32:
    from scipy.special import expit

    return np.asarray(expit(logits), dtype=np.float32)


def _runs(names: Sequence[str]) -> list[tuple[int, int]]:
    """(start, stop) of each run of equal names."""
    starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    return list(zip(starts, [*starts[1:], len(names)], strict=True))
