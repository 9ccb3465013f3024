"""What mining adds to a pool's features, and the decision over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import ChamferError
from chamfer.core.protocols import PairReranker, Reranker
from chamfer.core.types import F32, Bool, DenseVectors, Document, Query, VectorKind
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.families.dense import DenseRetriever
from chamfer.mining import negative_filters as filters
from chamfer.mining.config import MiningConfig
from chamfer.mining.pool import Pool
from chamfer.mining.text_overlap import TermCache, jaccard, overlap

CLUSTER_SAMPLE = 20_000
INCONSISTENT = "inconsistent"
MODALITY = "modality"


def add_text_features(pools: Sequence[Pool], cache: TermCache) -> None:
    """`overlap`: share of the query's terms in the candidate; `duplicate`: its highest Jaccard with a positive."""
    for pool in pools:
        asked = cache.query(pool.query.text)
        wanted = [cache.shingles(document) for document in pool.positives]
        pool.features["overlap"] = _column(overlap(asked, cache.terms(d)) for d in pool.documents)
        pool.features["duplicate"] = _column(
            max((jaccard(cache.shingles(d), own) for own in wanted), default=0.0) for d in pool.documents
        )


def stored_vectors(pools: Sequence[Pool], collection: Collection, vectors: DenseRetriever) -> list[F32]:
    """The stored dense vectors of every pool's candidates, f32 [n, D] of unit length; each is read once."""
    places: dict[str, int] = {}
    own = [[places.setdefault(d.doc_id, len(places)) for d in pool.documents] for pool in pools]
    distinct = unit(vectors.vectors(collection.rows(list(places))).values)
    return [distinct[rows] for rows in own]


def add_twins(pools: Sequence[Pool], stored: Sequence[F32]) -> None:
    """`twin`: the highest cosine of the candidate with a positive, by the stored vectors."""
    for pool, own in zip(pools, stored, strict=True):
        near = own @ own[pool.positive].T
        pool.features["twin"] = near.max(axis=1, initial=-1.0).astype(np.float32)


def add_modality(pools: Sequence[Pool], name: str) -> None:
    """`modality`: 0 where the metadata field says of the candidate what it says of a positive, else 1."""
    for pool in pools:
        wanted = {document.metadata.get(name) for document in pool.positives}
        pool.features[MODALITY] = _column(float(d.metadata.get(name) not in wanted) for d in pool.documents)


def add_judge_scores(pools: Sequence[Pool], judge: Reranker) -> None:
    """`judge`: the reranker's score of every pair, as a probability where it gives logits; NaN where it gave none."""
    pairs = [(pool.query, document) for pool in pools for document in pool.documents]
    scores = score_pairs(judge, pairs)
    start = 0
    for pool in pools:
        pool.features["judge"] = scores[start : start + len(pool)]
        start += len(pool)


def score_pairs(judge: Reranker, pairs: Sequence[tuple[Query, Document]]) -> F32:
    """Scores f32 [n] of any reranker; logits become probabilities, so that a margin means the same for all queries.

    Pairs of one query must stand together for a reranker that reads lists.
    """
    from chamfer.service.search.pair_scoring import SHARED_ERRORS, score_each

    if hasattr(judge, "score_pairs"):
        single: PairReranker = judge  # type: ignore[assignment]  # it judges pairs: that is the difference
        outcomes = score_each(single, pairs)
        for outcome in outcomes:
            if isinstance(outcome, SHARED_ERRORS):
                raise outcome
        scores = _column(np.nan if isinstance(outcome, ChamferError) else outcome for outcome in outcomes)
    else:
        scores = np.empty(len(pairs), dtype=np.float32)
        for start, stop in _runs([query.query_id for query, _ in pairs]):
            scores[start:stop] = judge.score(pairs[start][0], [document for _, document in pairs[start:stop]])
    return _sigmoid(scores) if judge.score_kind == "logit" else scores


@dataclass(frozen=True, slots=True)
class Clusters:
    """k-means over a sample of the collection's dense vectors: centres f32 [C, D], unit length."""

    centres: F32

    @classmethod
    def of(cls, vectors: DenseRetriever, rows: int, count: int, seed: int) -> Clusters:
        """Lloyd's algorithm from k-means++ (scipy), on at most CLUSTER_SAMPLE of the rows."""
        from scipy.cluster.vq import kmeans2

        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(rows, size=min(rows, CLUSTER_SAMPLE), replace=False))
        values = unit(vectors.vectors(chosen.astype(np.int64)).values)
        centres, _ = kmeans2(values, min(count, len(values)), minit="++", rng=rng, missing="warn")
        return cls(unit(np.asarray(centres, dtype=np.float32)))

    def add_to(self, pools: Sequence[Pool], stored: Sequence[F32], queries: F32) -> None:
        """`cluster`: the place of the candidate's cluster by nearness to the query, from 1."""
        for pool, own, query in zip(pools, stored, unit(queries), strict=True):
            cluster, places = filters.nearest_clusters(own, query[None], self.centres)
            pool.features["cluster"] = places[0, cluster].astype(np.float32)


def decide(pool: Pool, config: MiningConfig) -> None:
    """Writes the pool's fates: what `dropped_by` drops, the rest drawn by a cyclic stride."""
    ranks = pool.features["rank"]
    if config.consistency and not filters.consistent(ranks[pool.positive], config.consistency):
        dropped = [(INCONSISTENT, np.ones(len(pool), dtype=bool))]
        pool.fates = filters.fates(len(pool), pool.positive, dropped, config.stride, config.keep)
        return
    pool.fates = filters.fates(len(pool), pool.positive, dropped_by(pool, config), config.stride, config.keep)
    if config.modality:
        other = (pool.features[MODALITY] > 0) & ~pool.positive
        places = np.flatnonzero(other & filters.outranking(ranks, ranks[pool.positive]))
        for place in places[filters.cyclic(len(places), config.stride, config.wrong)]:
            pool.fates[place] = filters.WRONG


def dropped_by(pool: Pool, config: MiningConfig) -> list[tuple[str, Bool]]:
    """What each filter drops, by its name in a log; the first one that drops a candidate counts."""
    features = pool.features
    dropped: list[tuple[str, Bool]] = []
    if config.modality:
        dropped.append(("other_modality", features[MODALITY] > 0))
    dropped.append(("rank", filters.outside_ranks(features["rank"], config.first_rank, config.worst_rank)))
    if config.duplicate is not None:
        dropped.append(("duplicate", filters.alike(features["duplicate"], config.duplicate)))
    if config.twin is not None and "twin" in features:
        dropped.append(("twin", filters.alike(features["twin"], config.twin)))
    if "cluster" in features:
        dropped.append(("cluster", filters.outside_clusters(features["cluster"], config.nearest)))
    if config.margin is not None:
        own = pool.best_positive(config.by)
        dropped.append(("margin", filters.within_margin(features[config.by], own, config.margin)))
    if config.share is not None:
        own = pool.best_positive(config.by)
        dropped.append(("share", filters.within_share(features[config.by], own, config.share)))
    if "judge" in features:
        own = pool.best_positive("judge")
        dropped.append(("judge", filters.within_margin(features["judge"], own, config.beta)))
        if config.judge_most is not None:
            dropped.append(("judge_most", filters.above(features["judge"], config.judge_most)))
    return dropped


def dense_of(collection: Collection) -> DenseRetriever | None:
    """The retriever that holds dense vectors, if there is one."""
    for channel in collection.channels.values():
        if isinstance(channel.retriever, DenseRetriever):
            return channel.retriever
    return None


def query_vectors(encoder: object, queries: Sequence[Query]) -> F32:
    """Dense vectors f32 [Q, D] of queries by an encoder."""
    vectors = encoder.encode_queries(queries, [VectorKind.DENSE]).vectors(VectorKind.DENSE)  # type: ignore[attr-defined]
    assert isinstance(vectors, DenseVectors)
    return np.asarray(vectors.values, dtype=np.float32)


def unit(values: F32) -> F32:
    """Rows at length 1; a zero row stays zero."""
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
