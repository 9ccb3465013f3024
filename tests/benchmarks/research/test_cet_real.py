"""The benchmark of pooling bias on real judgements: its labels and judgements, and no training on the ranked query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.encoded import EncodedSet
from benchmarks.research.cet_real import MEASURE, POOL, JudgedWorld, arms, cross_validated, dense_top, read
from benchmarks.research.cet_simulation import Setting
from chamfer.core.evaluation import Qrel
from chamfer.core.types import DenseVectors, Document, Encoding, TokenVectors

SETTING = Setting(correlation=0, slope=0, shift=0, steps=20)
N, Q = 120, 15


def encoding(vectors: np.ndarray) -> Encoding:
    """An encoding in which each of the one to three tokens of a text has the vector of the text."""
    n = np.arange(len(vectors), dtype=np.int32) % 3 + 1
    offsets = np.concatenate([[0], np.cumsum(n, dtype=np.int64)])
    tokens = TokenVectors(np.repeat(vectors, n, axis=0), offsets)
    return Encoding(n, n == 0, dense=DenseVectors(vectors), tokens=tokens)


@pytest.fixture(scope="module")
def judged_world() -> JudgedWorld:
    """Documents of random words with random vectors; the nearest four and the farthest two to a query are relevant."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in rng.integers(0, 40, rng.integers(5, 30))) for _ in range(N)]
    vectors = rng.standard_normal((N, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query_vectors = vectors[:Q] + 0.05 * rng.standard_normal((Q, 8)).astype(np.float32)
    near = np.argsort(-(query_vectors @ vectors.T), axis=1)
    qrels = [Qrel(f"q{q}", f"d{d}", 1) for q in range(Q) for d in [*near[q, :4].tolist(), *near[q, -2:].tolist()]]
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    questions = [" ".join(text.split()[:6]) for text in texts[:Q]]
    return read(
        EncodedSet(
            "set", documents, encoding(vectors), encoding(query_vectors), [f"q{q}" for q in range(Q)], questions, qrels
        )
    )


def test_only_the_top_ten_of_bm25_is_labelled(judged_world: JudgedWorld) -> None:
    world = judged_world.world
    assert world.selected.sum(dim=1).tolist() == [POOL] * Q
    lowest = torch.where(world.selected, world.weak, torch.inf).amin(dim=1)
    highest = torch.where(world.selected, -torch.inf, world.weak).amax(dim=1)
    assert bool((lowest >= highest).all())
    assert world.relevant.sum(dim=1).tolist() == [6] * Q


def test_features_are_standardised_by_query(judged_world: JudgedWorld) -> None:
    torch.testing.assert_close(judged_world.world.features.mean(dim=1), torch.zeros(Q, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(judged_world.world.features.std(dim=1), torch.ones(Q, 5), atol=1e-4, rtol=0)


def test_all_judgements_count_but_only_the_dense_top_is_ranked(judged_world: JudgedWorld) -> None:
    values = judged_world.values(judged_world.world.relevant.float())
    gains = 1 / np.log2(np.arange(6) + 2)
    ranked_relevant = (judged_world.world.relevant & dense_top(judged_world.world)).sum(dim=1).tolist()
    assert set(ranked_relevant) == {4}  # the two distant ones are not ranked
    assert values == pytest.approx({f"q{q}": gains[:4].sum() / gains.sum() for q in range(Q)})
    assert MEASURE == "nDCG@10"


def test_no_query_is_ranked_by_a_ranker_trained_on_its_judgements(judged_world: JudgedWorld) -> None:
    world = judged_world.world
    changed = world.relevant.clone()
    changed[0] = ~changed[0]
    other = type(world)(world.features, world.p_r, world.p_s, changed, world.selected, world.weak, world.strong)
    before, after = cross_validated(world, SETTING, seed=0), cross_validated(other, SETTING, seed=0)
    assert all(torch.equal(before[name][0], after[name][0]) for name in before)
    assert any(not torch.equal(before[name][1:], after[name][1:]) for name in before)


def test_every_arm_gives_a_finite_ranker_of_five_features(judged_world: JudgedWorld) -> None:
    rankers = arms(judged_world.world, SETTING, torch.Generator().manual_seed(0))
    assert len(rankers) == 12
    assert all(ranker.shape == (5,) and bool(ranker.isfinite().all()) for ranker in rankers.values())
