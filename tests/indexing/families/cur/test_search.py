"""Searching by CUR with a budget: calls are counted, none is wasted, and a larger budget never returns less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chamfer.core.errors import InvalidInput
from chamfer.core.types import AnchorScores, Candidates, DenseVectors, Document, Encoding
from chamfer.indexing.families.cur.family import CurConfig, CurFamily, CurRetriever
from chamfer.indexing.families.cur.search import CurSearch, search
from chamfer.indexing.kernels.topk import as_candidates, best
from chamfer.indexing.rows.segment_part import SegmentPart

N_ITEMS, N_ANCHORS = 400, 40
METHODS = ("anncur", "adacur", "axn")


def matrix(rank: int = 8, noise: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(1)
    exact = draw.standard_normal((N_ANCHORS + 20, rank)) @ draw.standard_normal((rank, N_ITEMS))
    return (exact + noise * draw.standard_normal(exact.shape)).astype(np.float32)


def opened(scores: np.ndarray, **config: Any) -> CurRetriever:
    columns = AnchorScores(
        DenseVectors(np.ascontiguousarray(scores[:N_ANCHORS].T)), tuple(f"a{i}" for i in range(N_ANCHORS)), "judge"
    )
    encoding = Encoding(np.zeros(N_ITEMS, dtype=np.int32), np.zeros(N_ITEMS, dtype=bool), anchors=columns)
    plain = CurFamily(CurConfig(**config))
    family = plain.with_codec(plain.learn(encoding))
    documents = [Document(f"d{i}") for i in range(N_ITEMS)]
    return family.open([SegmentPart(family.pack(documents, encoding), None, N_ITEMS)])  # type: ignore[arg-type]


class CountingJudge:
    """The exact scores of one query; records the rows it scored."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores
        self.scored: list[int] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.scored += rows.tolist()
        return self.scores[rows]


def ranked(scores: np.ndarray) -> Candidates:
    order = best(scores.astype(np.float32), len(scores))
    return as_candidates([(order, scores[order].astype(np.float32))], len(scores))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 7, 50, 399, 400, 1000])
def test_calls_stay_within_the_budget_and_no_pair_is_scored_twice(method: Any, budget: int) -> None:
    scores = matrix(noise=0.5)
    judge = CountingJudge(scores[50])
    answer = search(opened(scores), judge, CurSearch(method=method, budget=budget))
    assert answer.calls == len(judge.scored) == len(set(judge.scored)) == min(budget, N_ITEMS)
    np.testing.assert_array_equal(answer.scores, scores[50, answer.rows])
    assert np.all(np.diff(answer.scores) <= 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_of_low_rank_is_searched_exactly_with_few_calls(method: Any) -> None:
    scores = matrix(rank=8)
    retriever = opened(scores, ridge=0.0, cutoff=1e-4)
    for query in range(N_ANCHORS, N_ANCHORS + 20):
        answer = search(retriever, CountingJudge(scores[query]), CurSearch(method=method, budget=60))
        np.testing.assert_array_equal(answer.rows[:10], np.argsort(-scores[query], kind="stable")[:10])
        estimated = np.isfinite(answer.estimates)
        np.testing.assert_allclose(answer.estimates[estimated], answer.scores[estimated], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_all_items_finds_everything(method: Any) -> None:
    scores = matrix(noise=2.0)
    answer = search(opened(scores), CountingJudge(scores[55]), CurSearch(method=method, budget=N_ITEMS))
    np.testing.assert_array_equal(np.sort(answer.rows), np.arange(N_ITEMS))


def test_one_round_is_retrieve_and_rerank() -> None:
    scores = matrix(noise=1.0)
    first = np.random.default_rng(2).standard_normal(N_ITEMS)
    answer = search(opened(scores), CountingJudge(scores[44]), CurSearch(budget=30, rounds=1), seeds=ranked(first))
    assert set(answer.rows.tolist()) == set(np.argsort(-first)[:30].tolist())


def test_rounds_find_more_of_the_exact_top_than_the_first_stage_alone() -> None:
    scores = matrix(rank=6, noise=0.4)
    retriever = opened(scores)
    draw = np.random.default_rng(3)
    shares: dict[int, list[float]] = {1: [], 5: []}
    for query in range(N_ANCHORS, N_ANCHORS + 20):
        seeds = ranked(scores[query] + 3 * draw.standard_normal(N_ITEMS))
        exact = set(np.argsort(-scores[query])[:10].tolist())
        for rounds, of_rounds in shares.items():
            answer = search(retriever, CountingJudge(scores[query]), CurSearch(budget=50, rounds=rounds), seeds=seeds)
            of_rounds.append(len(exact & set(answer.rows.tolist())) / 10)
    assert np.mean(shares[5]) > np.mean(shares[1]) + 0.2


@pytest.mark.parametrize("method", METHODS)
def test_only_allowed_rows_are_returned(method: Any) -> None:
    scores = matrix(noise=0.3)
    allowed = np.random.default_rng(4).random(N_ITEMS) < 0.1
    answer = search(opened(scores), CountingJudge(scores[45]), CurSearch(method=method, budget=30), allowed=allowed)
    assert len(answer.rows)
    assert allowed[answer.rows].all()


def test_a_filter_that_forbids_every_anchor_item_still_finds_what_it_allows() -> None:
    scores = matrix()
    retriever = opened(scores, anchor_items=50)
    allowed = np.ones(N_ITEMS, dtype=bool)
    allowed[retriever.anchor_items] = False
    answer = search(retriever, CountingJudge(scores[45]), CurSearch(method="adacur", budget=80), allowed=allowed)
    assert allowed[answer.rows].all()
    assert answer.rows[0] == np.argmax(np.where(allowed, scores[45], -np.inf))


def test_a_timeout_returns_the_rounds_that_were_completed() -> None:
    scores = matrix(noise=0.3)
    left = iter([True, True, False])
    answer = search(
        opened(scores), CountingJudge(scores[45]), CurSearch(budget=100, rounds=5), in_time=lambda: next(left)
    )
    assert not answer.complete
    assert answer.calls == 40


@pytest.mark.parametrize("selection", ["diverse", "kmeans", "random"])
def test_anchor_items_are_distinct_and_as_many_as_configured(selection: Any) -> None:
    items = opened(matrix(rank=3), anchor_items=60, selection=selection).anchor_items
    assert len(set(items.tolist())) == 60


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = matrix()
    broken = np.where(np.arange(N_ITEMS) % 2, np.nan, scores[45]).astype(np.float32)
    with pytest.raises(InvalidInput, match="not finite"):
        search(opened(scores), CountingJudge(broken), CurSearch(budget=20))


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"rounds": 0}, {"anchor_share": 0.0}, {"anchor_share": 1.5}])
def test_impossible_search_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        CurSearch(**wrong)


def test_an_empty_collection_gives_an_empty_result() -> None:
    family = CurFamily(CurConfig())
    answer = search(family.open([]), CountingJudge(np.empty(0)), CurSearch())
    assert len(answer.rows) == answer.calls == 0
