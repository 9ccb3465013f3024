"""Quality on real collections against independent figures (shared with the project as its reference)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate, strictly_falling
from chamfer.core.types import Query, VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.collection.collection import Collection
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder

pytestmark = pytest.mark.slow

Ranking = dict[str, list[str]]


def judged_queries(folder: Path, split: str) -> tuple[list[Qrel], list[Query]]:
    qrels = read_qrels(folder, split)
    judged_ids = {qrel.query_id for qrel in qrels}
    return qrels, [query for query in read_queries(folder) if query.query_id in judged_ids]


def exponential_ndcg(ranking: Ranking, qrels: list[Qrel], depth: int = 10) -> float:
    """nDCG with gains 2^g - 1: what the reference figures of cranfield use (docs/experiments.md)."""
    grades: dict[str, dict[str, int]] = {}
    for qrel in qrels:
        grades.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    values = []
    for query_id, query_grades in grades.items():
        gains = np.array([2.0 ** query_grades.get(doc_id, 0) - 1 for doc_id in ranking.get(query_id, [])[:depth]])
        ideal = np.array(sorted((2.0**g - 1 for g in query_grades.values()), reverse=True)[:depth])
        best = float((ideal * discounts[: len(ideal)]).sum())
        values.append(float((gains * discounts[: len(gains)]).sum()) / best if best else 0.0)
    return float(np.mean(values))


def rank(
    collection: Collection, channel: str, queries: list[Query], vectors: object
) -> tuple[Ranking, list[ScoredDoc]]:
    retrieved = collection.channels[channel].retriever.search(vectors, 100)
    ranking: Ranking = {}
    run: list[ScoredDoc] = []
    for i, query in enumerate(queries):
        rows, scores = retrieved.of(i)
        ranking[query.query_id] = collection.doc_ids(rows)
        run += [
            ScoredDoc(query.query_id, doc_id, float(score))
            for doc_id, score in zip(ranking[query.query_id], strictly_falling(scores), strict=True)
        ]
    return ranking, run


@pytest.mark.parametrize(
    ("name", "split", "ndcg", "recall"),
    [
        ("scifact", "test", (0.665, 0.69), (0.90, 1.0)),
        ("nfcorpus-stopped", "test", (0.32, 0.335), (0.245, 0.26)),
        ("npl", "test", (0.44, 0.45), (0.61, 0.635)),
        ("cranfield", "test-binary", (0.48, 0.49), (0.73, 0.745)),
        ("fairytaleqa", "test", (0.62, 0.645), (0.915, 0.935)),
    ],
)
def test_bm25_reaches_the_published_figures(
    shared_data: Path, tmp_path: Path, name: str, split: str, ndcg: tuple[float, float], recall: tuple[float, float]
) -> None:
    qrels, queries = judged_queries(shared_data / name, split)
    build(read_corpus(str(shared_data / name)), tmp_path / "c", encoder=None, config=BuildConfig(channels=("lexical",)))
    with Collection.open(tmp_path / "c") as collection:
        retriever = collection.channels["lexical"].retriever
        vectors = retriever.encode_queries([query.text for query in queries])  # type: ignore[attr-defined]
        _, run = rank(collection, "lexical", queries, vectors)
    means = evaluate(run, qrels, ["nDCG@10", "R@100"]).means
    print(name, means)
    assert ndcg[0] <= means["nDCG@10"] <= ndcg[1]
    assert recall[0] <= means["R@100"] <= recall[1]


def test_mini_reaches_the_reference_on_cranfield(shared_data: Path, tmp_path: Path) -> None:
    qrels, queries = judged_queries(shared_data / "cranfield", "test")
    encoder = load_encoder("mini-384", DeviceConfig(cache_dir=tmp_path))
    config = BuildConfig(channels=("dense", "multivector"))
    build(read_corpus(str(shared_data / "cranfield")), tmp_path / "c", encoder=encoder, config=config)
    encoded = encoder.encode_queries(queries, [VectorKind.DENSE, VectorKind.TOKENS])
    with Collection.open(tmp_path / "c") as collection:
        dense, dense_run = rank(collection, "dense", queries, encoded.vectors(VectorKind.DENSE))
        maxsim, _ = rank(collection, "multivector", queries, encoded.vectors(VectorKind.TOKENS))
    recall = evaluate(dense_run, qrels, ["R@100"]).means["R@100"]
    figures = (exponential_ndcg(dense, qrels), recall, exponential_ndcg(maxsim, qrels))
    print("dense nDCG@10 (exponential gains), R@100, raw MaxSim nDCG@10:", figures)
    assert figures[0] == pytest.approx(0.358, abs=0.002)
    assert figures[1] == pytest.approx(0.776, abs=0.003)
    assert figures[2] == pytest.approx(0.367, abs=0.003)


def test_dense_search_of_real_vectors_equals_float64_brute_force(shared_data: Path, tmp_path: Path) -> None:
    documents = [d for _, d in zip(range(300), read_corpus(str(shared_data / "cranfield")), strict=False)]
    _, queries = judged_queries(shared_data / "cranfield", "test")
    encoder = load_encoder("mini", DeviceConfig(cache_dir=tmp_path))
    build(documents, tmp_path / "c", encoder=encoder, config=BuildConfig(channels=("dense",), block_documents=64))
    with Collection.open(tmp_path / "c") as collection:
        stored = collection.channels["dense"].retriever.vectors(np.arange(300)).values  # type: ignore[attr-defined]
        vectors = encoder.encode_queries(queries[:40], [VectorKind.DENSE]).vectors(VectorKind.DENSE)
        retrieved = collection.channels["dense"].retriever.search(vectors, 20)
    exact = vectors.values.astype(np.float64) @ stored.astype(np.float64).T  # type: ignore[union-attr]
    for i in range(40):
        np.testing.assert_array_equal(retrieved.rows[i], np.argsort(-exact[i], kind="stable")[:20])
