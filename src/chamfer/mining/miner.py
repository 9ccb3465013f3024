"""Mines hard negatives: each block of queries becomes an artifact, and the artifacts are merged into three files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from chamfer.core.artifact import digest_of, discard_temporaries, find_artifact, remove_directory, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Reranker
from chamfer.core.types import Document, Query
from chamfer.indexing.families.dense import DenseRetriever
from chamfer.mining import features, pool_tables
from chamfer.mining.config import MiningConfig
from chamfer.mining.fates import assign_fates
from chamfer.mining.pool import Pool, pool_of
from chamfer.mining.text_overlap import TermCache
from chamfer.models.training.data.groups import write_documents
from chamfer.service.search.searcher import Searcher

Progress = Callable[[int, int], None]
POOLS = "pools.parquet"


@dataclass(frozen=True, slots=True)
class MiningReport:
    """Result of mining.

    queries        number of queries given
    unknown        queries without a positive in the collection
    groups         training groups written
    reused_blocks  blocks kept from an interrupted run
    fates          number of candidates by fate
    """

    queries: int
    unknown: int
    groups: int
    reused_blocks: int
    fates: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query and the ids of its known relevant documents."""

    query: Query
    relevant: tuple[str, ...]


def mine(
    searcher: Searcher,
    queries: Sequence[JudgedQuery],
    out: Path,
    config: MiningConfig,
    *,
    judge: Reranker | None = None,
    labels: tuple[str, str] = ("", "train"),
    progress: Progress | None = None,
) -> MiningReport:
    """Mines negatives for every query. After an interruption, a second call resumes at the first missing block.

    `labels` are the source and split written to the groups. Raises InvalidInput if the collection cannot provide a
    feature that the configuration needs, and if it contains no positive of any query.
    """
    miner = Miner(searcher, config, judge)
    answerable = [q for q in queries if (searcher.collection.rows(list(q.relevant)) >= 0).any()]
    if not answerable:
        raise InvalidInput(
            f"none of the {len(queries):,} queries has a relevant document in the collection; it may hold other data"
        )
    folder = out.with_name(f".{out.name}.blocks")
    discard_temporaries(folder)
    paths, reused = [], 0
    for number, start in enumerate(range(0, len(answerable), config.block)):
        block = answerable[start : start + config.block]
        path = folder / f"{number:06d}-{miner.digest(block, labels)[:40]}"
        if find_artifact(path, "mined-block") is not None:
            reused += 1
        else:
            with write_artifact(path, "mined-block", {}) as writer:
                pq.write_table(pool_tables.table_of(miner.pools(block, labels)), writer.path(POOLS), compression="zstd")
        paths.append(path / POOLS)
        if progress is not None:
            progress(start + len(block), len(answerable))
    count = pool_tables.merge(paths, out)
    ids = sorted({doc_id for path in paths for doc_id in pool_tables.doc_ids(path)})
    write_documents(pool_tables.documents_path(out), pool_tables.texts_of(searcher.collection, ids))
    remove_directory(folder)
    return MiningReport(len(queries), len(queries) - len(answerable), count, reused, pool_tables.count_fates(out))


class Miner:
    """Turns judged queries into pools, under one configuration."""

    def __init__(self, searcher: Searcher, config: MiningConfig, judge: Reranker | None = None) -> None:
        self._searcher = searcher
        self._config = config
        self._judge = judge
        self._judge_pairs = None if judge is None else features.pair_scorer(judge)
        self._vectors = features.dense_of(searcher.collection)
        self._terms = TermCache()
        self._clusters = self._cut_into_clusters() if config.clusters else None

    def digest(self, block: Sequence[JudgedQuery], labels: tuple[str, str]) -> str:
        """Digest of everything that the pools of a block depend on."""
        queries = [[q.query.query_id, q.query.text, *q.relevant] for q in block]
        config = asdict(self._config) | {"block": 0}
        plan = self._searcher.pipeline.plans.get(self._config.plan)
        rerankers = {name: each.fingerprint for name, each in self._searcher.pipeline.rerankers.items()}
        collection = self._searcher.collection
        identity = [collection.snapshot, [s.artifact.digest for s in collection.segments], len(collection)]
        judge = None if self._judge is None else [self._judge.name, self._judge.fingerprint]
        return digest_of(queries, labels, config, plan.plan.as_json if plan else None, rerankers, identity, judge)

    def pools(self, block: Sequence[JudgedQuery], labels: tuple[str, str] = ("", "train")) -> list[Pool]:
        """The pools of a block, with all features and fates; `labels` are their source and split."""
        config, collection = self._config, self._searcher.collection
        texts = [q.query.text for q in block]
        results = self._searcher.search_many(texts, config.depth, plan=config.plan, pool=config.depth)
        relevant = self._relevant(block)
        pools = [pool_of(q.query, r, d) for q, r, d in zip(block, results, relevant, strict=True)]
        features.add_text_features(pools, self._terms)
        if self._vectors is not None:
            stored = features.stored_vectors(pools, collection, self._vectors)
            features.add_twins(pools, stored)
            if self._clusters is not None:
                query_vectors = features.query_vectors(self._searcher.pipeline.encoder, [q.query for q in block])
                self._clusters.add_to(pools, stored, query_vectors)
        if config.modality:
            features.add_modality(pools, config.modality)
        if self._judge_pairs is not None:
            features.add_judge_scores(pools, self._judge_pairs)
        self._check_by(pools)
        for pool in pools:
            pool.source, pool.split = labels
            assign_fates(pool, config)
        return pools

    def _relevant(self, block: Sequence[JudgedQuery]) -> list[list[Document]]:
        """The relevant documents of each query that are in the collection."""
        ids = [doc_id for query in block for doc_id in query.relevant]
        rows = self._searcher.collection.rows(ids)
        documents = iter(self._searcher.collection.documents(rows[rows >= 0]))
        in_collection = iter((rows >= 0).tolist())
        return [[next(documents) for _ in query.relevant if next(in_collection)] for query in block]

    def _check_by(self, pools: Sequence[Pool]) -> None:
        by = self._config.by
        if (self._config.margin is None and self._config.share is None) or all(by in p.features for p in pools):
            return
        available = sorted({name for pool in pools for name in pool.features})
        raise InvalidInput(
            f"margins compare the feature {by!r}, which this plan does not provide; expected one of "
            f"{', '.join(available)} (--by)"
        )

    def _cut_into_clusters(self) -> features.Clusters:
        vectors: DenseRetriever | None = self._vectors
        if vectors is None or self._searcher.pipeline.encoder is None:
            raise InvalidInput("clusters need a dense channel; build the collection with one, or omit --clusters")
        return features.Clusters.of(vectors, len(vectors), self._config.clusters, self._config.seed)
