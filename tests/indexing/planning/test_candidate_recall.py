"""Ranks of the exact answer among candidates, recall, depth needed, and how it grows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamfer.core.types import Candidates
from chamfer.indexing.collection.recall_report import depth_in_sample
from chamfer.indexing.planning.candidate_recall import ABSENT, growth, needed, ranks_of_best, ranks_of_union, recall


def ranking(rows: np.ndarray) -> Candidates:
    return Candidates(rows.astype(np.int64), np.where(rows >= 0, -np.arange(rows.shape[1]), -np.inf).astype(np.float32))


def orders(n_queries: int, n: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([draw.permutation(n) for _ in range(n_queries)])


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 12), st.integers(0, 10_000))
def test_recall_and_depth_needed_equal_a_count_of_sets(n_queries: int, n: int, k: int, seed: int) -> None:
    exact, ranked = orders(n_queries, n, seed), orders(n_queries, n, seed + 1)
    ranked[:, n - n // 3 :] = -1  # the source does not return everything
    ranks = ranks_of_best(ranking(ranked), ranking(exact), k)

    def counted(depth: int) -> float:
        pairs = zip(exact, ranked, strict=True)
        return float(np.mean([len(set(e[:k]) & set(f[:depth])) / min(k, n) for e, f in pairs]))

    for depth in range(1, n + 1):
        assert recall(ranks, depth) == pytest.approx(counted(depth))
    for target in (0.3, 0.9, 0.99, 1.0):
        enough = [depth for depth in range(1, n + 1) if counted(depth) >= target - 1e-9]
        assert needed(ranks, target) == (enough[0] if enough else None)


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_ranks_in_a_part_are_those_of_a_search_without_the_others(n: int, seed: int) -> None:
    exact, ranked = orders(3, n, seed), orders(3, n, seed + 1)
    members = np.random.default_rng(seed).random(n) < 0.5
    ranks = ranks_of_best(ranking(ranked), ranking(exact), 5, members)
    for q in range(3):
        best = [row for row in exact[q] if members[row]][:5]
        left = [row for row in ranked[q] if members[row]]
        assert ranks[q].tolist() == [left.index(row) + 1 for row in best]


def test_a_union_gives_equal_shares() -> None:
    first, second = np.array([[1, 7, ABSENT]]), np.array([[4, 2, ABSENT]])
    ranks = ranks_of_union([first, second])
    assert ranks.tolist() == [[2, 4, ABSENT]]
    assert recall(ranks, 2) == pytest.approx(1 / 3)
    assert recall(ranks, 4) == pytest.approx(2 / 3)


def test_the_depth_of_a_random_source_grows_with_the_collection() -> None:
    exact, ranked = ranking(orders(60, 1600, 1)), ranking(orders(60, 1600, 2))
    assert growth(partial(ranks_of_best, ranked, exact, 10), 1600) > 0.97


def test_the_depth_of_a_perfect_source_does_not_grow() -> None:
    exact = ranking(orders(20, 800, 1))
    assert growth(partial(ranks_of_best, exact, exact, 10), 800) < 1e-9


def test_growth_predicts_the_depth_in_a_collection_four_times_as_large() -> None:
    n, draw = 4000, np.random.default_rng(4)
    truth = draw.standard_normal((80, n))
    exact = ranking(np.argsort(-truth, axis=1))
    ranked = ranking(np.argsort(-(truth + 0.4 * draw.standard_normal(truth.shape)), axis=1))
    members = np.zeros(n, dtype=bool)
    members[draw.permutation(n)[: n // 4]] = True
    member_rows = np.flatnonzero(members)

    def in_sample(part: np.ndarray | None) -> np.ndarray:
        chosen = members.copy()
        if part is not None:
            chosen[:] = False
            chosen[member_rows[part]] = True
        return ranks_of_best(ranked, exact, 10, chosen)

    exponent = growth(in_sample, n // 4)
    whole = ranks_of_best(ranked, exact, 10)
    for target in (0.9, 0.95):
        expected = needed(in_sample(None), target) * 4**exponent
        assert 0.7 < expected / needed(whole, target) < 1.4
    predicted = recall(in_sample(None), depth_in_sample(60, n // 4, n, exponent))
    assert predicted == pytest.approx(recall(whole, 60), abs=0.05)


def test_a_sample_too_small_to_tell_gets_the_worst_growth() -> None:
    exact, ranked = ranking(orders(5, 150, 1)), ranking(orders(5, 150, 2))
    assert growth(partial(ranks_of_best, ranked, exact, 10), 150) == 1.0


def test_depth_in_a_sample_is_the_depth_itself_where_the_sample_is_everything() -> None:
    assert depth_in_sample(100, 500, 500, 0.5) == 100
    assert depth_in_sample(100, 500, 50_000, 0.5) == 10
    assert depth_in_sample(100, 500, 50_000, 0.0) == 100
