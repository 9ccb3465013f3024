"""Mining from beginning to end: blocks of queries become artifacts, artifacts become the three files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from chamfer.api import Searcher
from chamfer.core.artifact import digest_of, discard_temporaries, find_artifact, remove_directory, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Reranker
from chamfer.core.types import Document, Query
from chamfer.indexing.families.dense import DenseRetriever
from chamfer.mining import features as scoring
from chamfer.mining import pool_tables as files
from chamfer.mining.config import MiningConfig
from chamfer.mining.pool import Pool, pool_of
from chamfer.mining.text_overlap import TermCache
from chamfer.models.training.data.groups import write_documents

Progress = Callable[[int, int], None]
POOLS = "pools.parquet"


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What was mined: queries asked, those without a positive in the collection, groups written, fates by name."""

    queries: int
    unknown: int
    groups: int
    reused_blocks: int
    fates: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """A query and the ids of its known relevant documents."""

    query: Query
    relevant: tuple[str, ...]


def mine(
    searcher: Searcher,
    questions: Sequence[Question],
    out: Path,
    config: MiningConfig,
    *,
    judge: Reranker | None = None,
    labels: tuple[str, str] = ("", "train"),
    progress: Progress | None = None,
) -> MiningReport:
    """Mines negatives for every question; run again after a kill, it goes on with the first block that is missing.

    `labels` are the source and split that the groups carry. Raises InvalidInput for a feature or filter that the
    collection cannot give, and when no positive at all is in the collection.
    """
    miner = Miner(searcher, config, judge)
    known = [q for q in questions if (searcher.collection.rows(list(q.relevant)) >= 0).any()]
    if not known:
        raise InvalidInput(
            f"none of {len(questions):,} queries has a relevant document in the collection: is it of another corpus?"
        )
    folder = out.with_name(f".{out.name}.blocks")
    discard_temporaries(folder)
    paths, reused = [], 0
    for number, start in enumerate(range(0, len(known), config.block)):
        block = known[start : start + config.block]
        path = folder / f"{number:06d}-{miner.digest(block, labels)[:40]}"
        if find_artifact(path, "mined-block") is not None:
            reused += 1
        else:
            with write_artifact(path, "mined-block", {}) as writer:
                pq.write_table(files.table_of(miner.pools(block, labels)), writer.path(POOLS), compression="zstd")
        paths.append(path / POOLS)
        if progress is not None:
            progress(start + len(block), len(known))
    count = files.merge(paths, out)
    ids = sorted({doc_id for path in paths for doc_id in files.doc_ids(path)})
    write_documents(files.documents_path(out), files.texts_of(searcher.collection, ids))
    remove_directory(folder)
    return MiningReport(len(questions), len(questions) - len(known), count, reused, files.count_fates(out))


class Miner:
    """Questions to pools, under one configuration."""

    def __init__(self, searcher: Searcher, config: MiningConfig, judge: Reranker | None = None) -> None:
        self._searcher = searcher
        self._config = config
        self._judge = judge
        self._vectors = scoring.dense_of(searcher.collection)
        self._terms = TermCache()
        self._clusters = self._cut_into_clusters() if config.clusters else None

    def digest(self, block: Sequence[Question], labels: tuple[str, str]) -> str:
        """Of all that the pools of a block depend on."""
        asked = [[q.query.query_id, q.query.text, *q.relevant] for q in block]
        config = asdict(self._config) | {"block": 0}
        plan = self._searcher.pipeline.plans.get(self._config.plan)
        rerankers = {name: each.fingerprint for name, each in self._searcher.pipeline.rerankers.items()}
        collection = self._searcher.collection
        identity = [collection.snapshot, [s.artifact.digest for s in collection.segments], len(collection)]
        judge = None if self._judge is None else [self._judge.name, self._judge.fingerprint]
        return digest_of(asked, labels, config, plan.plan.as_json if plan else None, rerankers, identity, judge)

    def pools(self, block: Sequence[Question], labels: tuple[str, str] = ("", "train")) -> list[Pool]:
        """The pools of a block, every feature and fate in place; `labels` are their source and split."""
        config, collection = self._config, self._searcher.collection
        texts = [q.query.text for q in block]
        results = self._searcher.search_many(texts, config.depth, plan=config.plan, pool=config.depth)
        relevant = self._relevant(block)
        pools = [pool_of(q.query, r, d) for q, r, d in zip(block, results, relevant, strict=True)]
        scoring.add_text_features(pools, self._terms)
        if self._vectors is not None:
            stored = scoring.stored_vectors(pools, collection, self._vectors)
            scoring.add_twins(pools, stored)
            if self._clusters is not None:
                asked = scoring.query_vectors(self._searcher.pipeline.encoder, [q.query for q in block])
                self._clusters.add_to(pools, stored, asked)
        if config.modality:
            scoring.add_modality(pools, config.modality)
        if self._judge is not None:
            scoring.add_judge_scores(pools, self._judge)
        self._check_by(pools)
        for pool in pools:
            pool.source, pool.split = labels
            scoring.decide(pool, config)
        return pools

    def _relevant(self, block: Sequence[Question]) -> list[list[Document]]:
        ids = [doc_id for question in block for doc_id in question.relevant]
        rows = self._searcher.collection.rows(ids)
        known = iter(self._searcher.collection.documents(rows[rows >= 0]))
        there = iter((rows >= 0).tolist())
        return [[next(known) for _ in question.relevant if next(there)] for question in block]

    def _check_by(self, pools: Sequence[Pool]) -> None:
        by = self._config.by
        if (self._config.margin is None and self._config.share is None) or all(by in p.features for p in pools):
            return
        there = sorted({name for pool in pools for name in pool.features})
        raise InvalidInput(f"margins compare {by!r}, which this plan does not give; it gives {', '.join(there)} (--by)")

    def _cut_into_clusters(self) -> scoring.Clusters:
        vectors: DenseRetriever | None = self._vectors
        if vectors is None or self._searcher.pipeline.encoder is None:
            raise InvalidInput("clusters need a dense channel; build the collection with one, or leave --clusters out")
        return scoring.Clusters.of(vectors, len(vectors), self._config.clusters, self._config.seed)
