"""Pairs of many queries: a failure affects its pair only, and a deadline its query only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support_service import ManualClock, PairReranker, collection, pipeline

from chamfer.core.errors import ChamferError, Internal, InvalidInput, Unavailable
from chamfer.core.types import Document, Query
from chamfer.service.search.deadlines import DurationEstimate
from chamfer.service.search.pair_scoring import ROUND_PAIRS, QueryPairs, score_each, score_in_time
from chamfer.service.search.plans import Plan
from chamfer.service.search.request import SearchRequest, SearchResult

QUERY = Query("q", "which fox?")


def documents(n: int, text: str = "fox") -> list[Document]:
    return [Document(str(i), text + " x" * i) for i in range(n)]


def lengths(documents: Sequence[Document]) -> list[float]:
    return [float(len(document.text)) for document in documents]


@given(st.lists(st.sampled_from(["fine", "crash", "image", "nan"]), min_size=1, max_size=24))
@settings(max_examples=60, deadline=None)
def test_an_offending_pair_fails_alone(texts: list[str]) -> None:
    outcomes = score_each(PairReranker(), [(QUERY, Document(str(i), text)) for i, text in enumerate(texts)])
    kinds = {"crash": Internal, "image": InvalidInput, "nan": Internal}
    for text, outcome in zip(texts, outcomes, strict=True):
        if text == "fine":
            assert outcome == len(text)
        else:
            assert isinstance(outcome, kinds[text])


def test_a_failing_server_is_not_called_again_with_halves() -> None:
    reranker = PairReranker()
    outcomes = score_each(reranker, [(QUERY, Document(str(i), "down")) for i in range(8)])
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert reranker.batches == [8]


def test_without_deadlines_all_pairs_are_one_batch() -> None:
    reranker, queries = PairReranker(), [QueryPairs(QUERY, documents(n)) for n in (50, 3, 0)]
    score_in_time(reranker, queries, DurationEstimate(), ManualClock())
    assert reranker.batches == [53]
    assert [each.scores for each in queries] == [lengths(each.documents) for each in queries]


def test_a_deadline_cuts_the_tail_of_its_own_query_only() -> None:
    clock, reranker = ManualClock(), PairReranker()
    reranker.before = lambda: clock.wait(1.0)
    limited, unlimited = QueryPairs(QUERY, documents(60), deadline=clock.now + 3.5), QueryPairs(QUERY, documents(60))
    score_in_time(reranker, [limited, unlimited], DurationEstimate(), clock)
    assert 0 < len(limited.scores) < 60
    assert limited.scores == lengths(limited.documents)[: len(limited.scores)]
    assert limited.unfinished
    assert unlimited.scores == lengths(unlimited.documents)
    assert all(size <= ROUND_PAIRS for size in reranker.batches[: len(limited.scores) // 8])


def test_a_search_keeps_the_scores_that_were_in_time_and_is_reported_as_degraded() -> None:
    clock, reranker = ManualClock(), PairReranker()
    reranker.before = lambda: clock.wait(1.0)
    searching = pipeline(
        collection=collection([Document(f"d{i}", "fox " + "x" * i) for i in range(100)]),
        rerankers={"pairs": reranker},
        clock=clock,
    )
    plan = {"channels": {"dense": {"depth": 100}}, "rerank": {"model": "pairs", "depth": 100}}
    [result] = searching.run([_request(plan, deadline=clock.now + 3.5)])
    assert isinstance(result, SearchResult)
    assert result.degraded == ("rerank:pairs",)
    assert sum(reranker.batches) in range(1, 100)
    scored = [hit.explanation["stages"][-1]["score"] for hit in result.hits if hit.explanation]  # type: ignore[index]  # our own shape
    assert sum(score is not None for score in scored) == sum(reranker.batches)
    assert all(score is not None for score in scored[: sum(reranker.batches)])


def test_the_searches_of_a_batch_share_the_rerankers_batch() -> None:
    reranker = PairReranker()
    searching = pipeline(rerankers={"pairs": reranker})
    plan = {"channels": {"dense": {}}, "rerank": {"model": "pairs", "depth": 5}}
    alone = [searching.run([_request(plan, query=q)])[0] for q in ("fox", "crow")]
    reranker.batches.clear()
    together = searching.run([_request(plan, query=q) for q in ("fox", "crow")])
    assert reranker.batches == [10]
    for a, b in zip(alone, together, strict=True):
        assert isinstance(a, SearchResult)
        assert isinstance(b, SearchResult)
        assert [(h.doc_id, h.score) for h in a.hits] == [(h.doc_id, h.score) for h in b.hits]


def test_a_search_with_a_faulty_pair_fails_alone() -> None:
    searching = pipeline(
        collection=collection([Document("a", "fox"), Document("b", "crash crow")]), rerankers={"pairs": PairReranker()}
    )
    plan = {"channels": {"dense": {"depth": 1}}, "rerank": {"model": "pairs", "depth": 1}}
    good, bad = searching.run([_request(plan, query=q, k=1) for q in ("fox", "crash crow")])
    assert isinstance(good, SearchResult)
    assert isinstance(bad, Internal)


def test_the_errors_of_a_batch_are_chamfer_errors() -> None:
    assert all(isinstance(o, ChamferError) for o in score_each(PairReranker(), [(QUERY, Document("a", "crash"))]))


def _request(plan: dict[str, Any], query: str = "fox", k: int = 100, deadline: float | None = None) -> SearchRequest:
    return SearchRequest(query=query, k=k, plan=Plan.model_validate(plan), explain=True, deadline=deadline)
