"""Feedback in the pipeline: modes, sources, the guard, explanations, deadlines, and independence of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support_service import LengthReranker, ManualClock, collection, pipeline

from chamfer.core.errors import ChamferError
from chamfer.core.types import VectorKind
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan
from chamfer.service.search.request import SearchRequest, SearchResult

QUERY = "why did the fox lose his tail"
HYBRID = {"dense": {"weight": 0.6}, "lexical": {"weight": 0.4}}
DENSE = {"dense": {}}
METHODS = {"dense": {"method": "average"}, "lexical": {"method": "rm3"}}


def a_plan(searched: Any = HYBRID, /, **feedback: Any) -> Plan:
    """A plan over the channels `searched`, with two feedback documents for channel dense and, by default, no guard."""
    rest = {key: feedback.pop(key) for key in ("rescore", "fusion") if key in feedback}
    settings = {"channels": DENSE, "depth": 2, "guard": None, **feedback}
    return Plan.model_validate({"channels": searched, **rest, "feedback": settings})


def without(plan: Plan) -> Plan:
    return plan.model_copy(update={"feedback": None})


def run_one(plan: Plan | str, searching: Pipeline | None = None, **request: Any) -> SearchResult:
    fields = {"query": QUERY, "k": 8, "explain": True, **request}
    [answer] = (searching or pipeline()).run([SearchRequest(plan=plan, **fields)])
    if isinstance(answer, ChamferError):
        raise answer
    return answer


def ranking(result: SearchResult) -> list[tuple[str, float]]:
    return [(hit.doc_id, hit.score) for hit in result.hits]


def stages(result: SearchResult, index: int = 0) -> list[dict[str, Any]]:
    explanation = result.hits[index].explanation
    assert explanation is not None
    explained: list[dict[str, Any]] = explanation["stages"]
    return explained


def documents(result: SearchResult) -> list[str]:
    [stage] = [stage for stage in stages(result) if stage["stage"] == "feedback"]
    doc_ids: list[str] = stage["documents"]
    return doc_ids


@pytest.mark.parametrize(("mode", "searched"), [("after", HYBRID), ("both", HYBRID), ("before", DENSE)])
def test_alpha_one_and_beta_zero_change_nothing(mode: str, searched: Any) -> None:
    plan = a_plan(interpolate=mode, channels={"dense": {"alpha": 1.0, "beta": 0.0}})
    assert ranking(run_one(plan)) == ranking(run_one(Plan.model_validate({"channels": searched})))


def test_a_second_round_scores_alpha_times_the_query_and_beta_times_the_documents() -> None:
    stored = collection()
    plan = Plan.model_validate({"channels": DENSE, "feedback": {"channels": DENSE, "depth": 2, "guard": None}})
    first = run_one(without(plan), pipeline(collection=stored))
    again = run_one(plan, pipeline(collection=stored))
    number = {hit.doc_id: int(hit.doc_id.split("-")[1]) for hit in first.hits}
    vectors = stored.channels["dense"].retriever.vectors(np.arange(8)).values
    top = [number[hit.doc_id] for hit in first.hits[:2]]
    query = dict(ranking(first))
    length = run_length(QUERY)
    scaled = [vectors[row] * length / np.linalg.norm(vectors[row]) for row in top]
    expected = {d: 0.4 * query[d] + 0.6 * np.mean([s @ vectors[number[d]] for s in scaled]) for d in query}
    assert dict(ranking(again)) == pytest.approx(expected, rel=1e-5)


def run_length(text: str) -> float:
    from support_service import encode

    vectors: Any = encode([text], [VectorKind.DENSE], 8).vectors(VectorKind.DENSE)
    return float(np.linalg.norm(vectors.values[0]))


def test_average_is_rocchio_with_equal_shares() -> None:
    average = a_plan(channels={"dense": {"method": "average"}}, depth=3)
    rocchio = a_plan(channels={"dense": {"alpha": 0.25, "beta": 0.75}}, depth=3)
    assert ranking(run_one(average)) == ranking(run_one(rocchio))


def test_feedback_documents_come_from_the_fused_ranking_from_the_channels_own_or_from_the_named_one() -> None:
    query = "water mouse wolf sheep"
    fused, dense, lexical = (
        [hit.doc_id for hit in run_one(Plan.model_validate({"channels": channels}), query=query).hits[:2]]
        for channels in (HYBRID, DENSE, {"lexical": {}})
    )
    assert len({tuple(fused), tuple(dense), tuple(lexical)}) == 3
    assert documents(run_one(a_plan(interpolate="both"), query=query)) == fused
    assert documents(run_one(a_plan(interpolate="before"), query=query)) == fused
    assert documents(run_one(a_plan(interpolate="after"), query=query)) == dense
    assert documents(run_one(a_plan(source="lexical"), query=query)) == lexical


def test_interpolation_before_returns_the_second_ranking_and_both_fuses_it() -> None:
    before, both = run_one(a_plan(interpolate="before")), run_one(a_plan(interpolate="both"))
    assert [s["stage"] for s in stages(before)] == ["retrieve", "retrieve", "fuse", "feedback", "retrieve_again"]
    assert stages(before)[-1]["score"] == before.hits[0].score
    explained = [(s["stage"], s["name"]) for s in stages(both)[3:]]
    assert explained == [
        ("feedback", "dense"),
        ("retrieve_again", "dense"),
        ("retrieve", "lexical"),
        ("fuse_again", "interpolation"),
    ]
    shares = [s["share"] for s in stages(both)[4:6]]
    assert sum(shares) == pytest.approx(both.hits[0].score, rel=1e-6)


def test_interpolation_before_with_all_weight_on_dense_is_plain_feedback() -> None:
    alone = a_plan(DENSE, interpolate="after")
    for mode in ("before", "both"):
        weighted = a_plan({"dense": {"weight": 1.0}, "lexical": {"weight": 0.0}}, interpolate=mode)
        assert ranking(run_one(weighted)) == ranking(run_one(alone))


def test_the_explanation_names_documents_shares_and_trust() -> None:
    plan = a_plan(guard={"low": 0.0, "high": 4.0})
    explained = next(s for s in stages(run_one(plan)) if s["stage"] == "feedback")
    assert explained["source"] == "fused"
    assert 0 < explained["trust"] < 1
    assert explained["trust"] == pytest.approx(explained["standout"] / 4, abs=1e-3)
    assert (explained["method"], explained["alpha"], explained["skipped"]) == ("rocchio", 0.4, False)
    assert explained["beta"] == pytest.approx(0.6 * explained["trust"])
    assert explained["rank"] == 1, "the first hit was the first feedback document"


def test_feedback_is_skipped_if_the_first_ranking_does_not_stand_out() -> None:
    stored = collection()
    plan = a_plan(guard={"low": 50.0, "high": 60.0})
    result = run_one(plan, pipeline(collection=stored))
    assert ranking(result) == ranking(run_one(without(plan)))
    explained = stages(result)[-1]
    assert (explained["stage"], explained["skipped"], explained["trust"]) == ("feedback", True, 0.0)
    assert stored.channels["dense"].retriever.calls == [(1, 100)], "it was searched once"


def test_a_guard_that_trusts_every_ranking_changes_nothing() -> None:
    assert ranking(run_one(a_plan(guard={"low": 0.0, "high": 0.0}))) == ranking(run_one(a_plan()))


def test_sparse_feedback_finds_documents_without_a_word_of_the_query() -> None:
    lexical = {"lexical": {}}
    plan = a_plan(lexical, channels={"lexical": {"method": "rm3", "original": 0.5}}, depth=1)
    first, again = run_one(without(plan), query="pebbles"), run_one(plan, query="pebbles")
    assert [hit.doc_id for hit in first.hits] == ["fable-1"]
    assert again.hits[0].doc_id == "fable-1"
    assert len(again.hits) > 1
    assert next(s for s in stages(again) if s["stage"] == "feedback")["added"] > 5


def test_a_channel_that_only_rescores_does_so_with_the_expanded_query() -> None:
    rescore = {"channel": "multivector"}
    plan = a_plan(rescore=rescore, channels={"multivector": {"method": "expansion", "beta": 0.5, "vectors": 3}})
    plain, expanded = run_one(without(plan)), run_one(plan)
    assert [s["stage"] for s in stages(expanded)] == ["retrieve", "retrieve", "fuse", "feedback", "rescore"]
    assert stages(expanded)[3]["added"] == 3
    assert all(after > before for (_, after), (_, before) in zip(ranking(expanded), ranking(plain), strict=True))
    nothing = a_plan(rescore=rescore, channels={"multivector": {"method": "expansion", "beta": 0.0}})
    assert ranking(run_one(nothing)) == ranking(plain)


def test_documents_outside_a_filter_are_neither_feedback_documents_nor_hits() -> None:
    result = run_one(a_plan(), filter=lambda document: document.metadata["number"] >= 6)
    assert {hit.doc_id for hit in result.hits} == {"fable-6", "fable-7"}
    assert set(documents(result)) == {"fable-6", "fable-7"}


def test_a_query_without_hits_has_no_second_round() -> None:
    plan = a_plan({"lexical": {}}, channels={"lexical": {"method": "rm3"}})
    assert run_one(plan, query="zyzzyva").hits == ()


def test_feedback_past_the_deadline_is_skipped_and_reported() -> None:
    clock, stored = ManualClock(), collection()
    searching = pipeline(collection=stored, clock=clock)
    stored.channels["lexical"].retriever.before = lambda: clock.wait(2.0)
    result = run_one(a_plan(), searching, deadline=clock.now + 1.0)
    assert result.degraded == ("feedback:dense",)
    assert ranking(result) == ranking(run_one(without(a_plan())))


def test_a_second_search_past_the_deadline_keeps_the_first_ranking() -> None:
    clock, stored = ManualClock(), collection()
    searching = pipeline(collection=stored, clock=clock)
    calls = stored.channels["dense"].retriever.calls
    stored.channels["dense"].retriever.before = lambda: clock.wait(2.0 if calls else 0.0)
    result = run_one(a_plan(channels=METHODS), searching, deadline=clock.now + 1.0)
    assert result.degraded == ("feedback:lexical",)
    assert ranking(result) == ranking(run_one(a_plan(channels={"dense": {"method": "average"}})))


def test_feedback_is_timed() -> None:
    timings = run_one(a_plan(channels=METHODS)).timings_ms
    assert {"feedback:dense", "feedback:lexical", "fuse_again"} <= set(timings)


def some_plans() -> list[Plan | str]:
    modes = [a_plan(interpolate=mode, channels=METHODS) for mode in ("before", "after", "both")]
    guarded = [a_plan(guard={"low": low, "high": 4.0}) for low in (0.0, 2.0, 4.0)]
    tokens = {"multivector": {"method": "expansion", "vectors": 2}}
    others = [
        a_plan({"multivector": {}, **HYBRID}, channels=tokens),
        a_plan(rescore={"channel": "multivector"}, channels={**tokens, **DENSE}),
        a_plan(fusion={"method": "rrf"}),
        a_plan(fusion={"method": "dbsf"}, source="lexical"),
    ]
    return ["fast", "balanced", *modes, *guarded, *others]


def test_feedback_gives_the_same_bits_alone_and_in_a_batch() -> None:
    queries = (QUERY, "who freed the lion", "crow and pitcher", "the slow tortoise won", "zyzzyva")
    requests = [SearchRequest(query=q, plan=p, k=5, explain=True) for q in queries for p in some_plans()]
    searching = pipeline()
    together = searching.run(requests)
    for request, answer in zip(requests, together, strict=True):
        [alone] = searching.run([request])
        assert isinstance(answer, SearchResult)
        assert isinstance(alone, SearchResult)
        assert answer.hits == alone.hits
        assert [np.float32(h.score).tobytes() for h in answer.hits] == [
            np.float32(h.score).tobytes() for h in alone.hits
        ]


def test_the_features_of_a_pool_are_the_numbers_of_the_explanations() -> None:
    searching = pipeline(rerankers={"length": LengthReranker()})
    for plan in [*some_plans(), "best"]:
        result = run_one(plan, searching, pool=8)
        assert result.pool is not None
        wanted: dict[str, list[float]] = {}
        for index in range(len(result.hits)):
            for stage in stages(result, index):
                again = {"retrieve": stage["name"], "retrieve_again": f"{stage['name']}.again"}
                for value in ("rank", "score"):
                    if stage[value] is not None:
                        name = f"{again.get(stage['stage'], stage['stage'])}.{value}"
                        wanted.setdefault(name, [np.nan] * len(result.hits))[index] = stage[value]
        features = result.pool.features()
        assert features.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(features[name], np.array(values, dtype=np.float32), err_msg=f"{plan} {name}")
