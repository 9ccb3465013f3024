"""The pipeline over a fake collection: what each stage does, isolation, deadlines, and independence of the batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support_service import (
    LengthReranker,
    ManualClock,
    RecordingEncoder,
    collection,
    encode,
    fables,
    pipeline,
)

from chamfer.core.errors import ChamferError, DeadlineExceeded, Internal, InvalidInput
from chamfer.core.types import Query, VectorKind
from chamfer.indexing.collection.filters import Equals
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import ChannelPlan, Plan
from chamfer.service.search.request import SearchRequest, SearchResult

QUERY = "why did the fox lose his tail"
DENSE = Plan(channels={"dense": ChannelPlan()})
ORDERS = (("dense", "lexical", "multivector"), ("multivector", "dense", "lexical"), ("lexical", "dense"))
HYBRID = {"dense": {"depth": 100}, "lexical": {"depth": 100}}


def run_one(searching: Pipeline, **request: Any) -> SearchResult:
    [answer] = searching.run([SearchRequest(**{"query": QUERY, **request})])
    if isinstance(answer, ChamferError):
        raise answer
    return answer


def doc_ids(result: SearchResult) -> list[str]:
    return [hit.doc_id for hit in result.hits]


def comparable(answer: SearchResult | ChamferError) -> object:
    """All fields of a result except its timings."""
    if isinstance(answer, ChamferError):
        return type(answer), answer.detail
    hits = [(hit.doc_id, hit.rank, np.float32(hit.score).tobytes(), hit.explanation) for hit in answer.hits]
    return hits, answer.degraded, answer.truncated_query, answer.plan


def test_a_single_channel_returns_its_own_scores_best_first() -> None:
    result = run_one(pipeline(), plan=Plan(channels={"dense": ChannelPlan()}), k=8)
    query = encode([QUERY], [VectorKind.DENSE], 8).vectors(VectorKind.DENSE).values[0]  # type: ignore[union-attr]
    texts = encode([d.content for d in fables()], [VectorKind.DENSE], 256).vectors(VectorKind.DENSE).values  # type: ignore[union-attr]
    expected = np.sort((texts * query).sum(axis=1))[::-1]
    assert [hit.score for hit in result.hits] == pytest.approx(expected.tolist(), rel=1e-6)
    assert [hit.rank for hit in result.hits] == list(range(1, 9))
    assert result.snapshot == "snapshot-000001"


def test_hits_carry_their_documents() -> None:
    result = run_one(pipeline(), k=3)
    by_id = {document.doc_id: document for document in fables()}
    assert [hit.document for hit in result.hits] == [by_id[doc_id] for doc_id in doc_ids(result)]


def test_all_queries_of_a_batch_are_encoded_by_one_call_with_the_union_of_kinds() -> None:
    encoder = RecordingEncoder()
    searching = pipeline(encoder=encoder)
    searching.run([SearchRequest(query=QUERY, plan=plan) for plan in (DENSE, "balanced", "best")])
    assert encoder.calls == [(3, (VectorKind.DENSE, VectorKind.TOKENS))]


def test_a_plan_of_text_channels_alone_is_not_encoded() -> None:
    encoder = RecordingEncoder()
    result = run_one(pipeline(encoder=encoder), query="pebbles", plan=Plan(channels={"lexical": ChannelPlan()}))
    assert doc_ids(result) == ["fable-1"]
    assert encoder.calls == []


def test_requests_with_equal_parameters_share_one_search_of_a_channel() -> None:
    stored = collection()
    pipeline(collection=stored).run([SearchRequest(query=f"{QUERY} {n}") for n in range(5)])
    assert stored.channels["dense"].retriever.calls == [(5, 100)]


def test_the_depth_of_retrieval_is_at_least_k() -> None:
    stored = collection()
    run_one(pipeline(collection=stored), plan=Plan(channels={"dense": ChannelPlan(depth=2)}), k=7)
    assert stored.channels["dense"].retriever.calls == [(1, 7)]


def test_rescoring_orders_by_exact_maxsim() -> None:
    plan = Plan.model_validate({"channels": HYBRID, "rescore": {"channel": "multivector"}})
    only = run_one(pipeline(), plan=Plan(channels={"multivector": ChannelPlan()}), k=8)
    rescored = run_one(pipeline(), plan=plan, k=8)
    assert doc_ids(rescored) == doc_ids(only)
    assert [h.score for h in rescored.hits] == [h.score for h in only.hits]


def test_rescoring_all_scores_the_union_of_what_the_channels_found() -> None:
    channels = {"dense": {"depth": 2}, "lexical": {"depth": 2}}
    retrieved = {
        doc_id
        for name in channels
        for doc_id in doc_ids(run_one(pipeline(), plan=Plan.model_validate({"channels": {name: {"depth": 2}}}), k=2))
    }
    plan = Plan.model_validate({"channels": channels, "rescore": {"channel": "multivector", "depth": "all"}})
    exact = run_one(pipeline(), plan=Plan(channels={"multivector": ChannelPlan()}), k=8)
    rescored = run_one(pipeline(), plan=plan, k=2, explain=True)
    expected = [doc_id for doc_id in doc_ids(exact) if doc_id in retrieved][:2]
    assert len(retrieved) > 2
    assert doc_ids(rescored) == expected
    assert plan.as_json["rescore"]["depth"] == "all"


def test_rescoring_by_interpolation_with_share_zero_keeps_the_fused_order() -> None:
    plan = {"channels": HYBRID, "rescore": {"channel": "multivector", "interpolate": 0.0}}
    fused = run_one(pipeline(), plan=Plan.model_validate({"channels": HYBRID}), k=8)
    assert doc_ids(run_one(pipeline(), plan=Plan.model_validate(plan), k=8)) == doc_ids(fused)


def test_rescoring_by_interpolation_explains_the_exact_score_and_the_blend() -> None:
    plan = {"channels": HYBRID, "rescore": {"channel": "multivector", "interpolate": 0.5}}
    result = run_one(pipeline(), plan=Plan.model_validate(plan), k=8, explain=True)
    stages = [hit.explanation["stages"] for hit in result.hits if hit.explanation]
    fused, exact, blended = (np.asarray([stage[index]["score"] for stage in stages]) for index in (-3, -2, -1))
    scaled = [(scores - scores.min()) / np.ptp(scores) for scores in (exact, fused)]
    assert blended.tolist() == pytest.approx((0.5 * scaled[0] + 0.5 * scaled[1]).tolist(), abs=1e-6)
    assert blended.tolist() == [hit.score for hit in result.hits]
    assert [stage[-1]["rank"] for stage in stages] == [hit.rank for hit in result.hits]
    by_exact = np.argsort(-exact)
    assert [stages[index][-2]["rank"] for index in by_exact] == list(range(1, 9))


def test_reranking_scores_the_first_candidates_and_keeps_the_others_below() -> None:
    reranker = LengthReranker()
    plan = Plan.model_validate({"channels": HYBRID, "rerank": {"model": "length", "depth": 3}})
    before = run_one(pipeline(), plan=Plan.model_validate({"channels": HYBRID}), k=8)
    after = run_one(pipeline(rerankers={"length": reranker}), plan=plan, k=8)
    lengths = [len(hit.document.text) for hit in after.hits[:3]]
    assert reranker.calls == [3]
    assert set(doc_ids(after)[:3]) == set(doc_ids(before)[:3])
    assert lengths == sorted(lengths, reverse=True)
    assert doc_ids(after)[3:] == doc_ids(before)[3:]
    scores = [hit.score for hit in after.hits]
    assert scores == sorted(scores, reverse=True)


def test_a_filter_reaches_every_channel_before_the_search() -> None:
    plan = Plan.model_validate({"channels": HYBRID, "rescore": {"channel": "multivector"}})
    result = run_one(pipeline(), plan=plan, k=8, filter=lambda document: document.metadata["number"] >= 6)
    assert set(doc_ids(result)) == {"fable-6", "fable-7"}


def test_a_filter_that_allows_nothing_gives_no_hits() -> None:
    assert run_one(pipeline(rerankers={"length": LengthReranker()}), plan="best", filter=lambda _: False).hits == ()


def test_filters_of_one_batch_do_not_mix() -> None:
    requests = [
        SearchRequest(query=QUERY, filter=lambda document, wanted=number: document.metadata["number"] == wanted)
        for number in range(4)
    ]
    answers = pipeline().run(requests)
    assert [doc_ids(a) for a in answers if isinstance(a, SearchResult)] == [[f"fable-{n}"] for n in range(4)]


def test_filters_that_are_equal_in_python_but_not_in_json_are_not_merged() -> None:
    stored = collection()
    conditions = [Equals("number", 1), Equals("number", True), Equals("number", 1)]
    received: list[object] = []
    allowed = stored.allowed
    stored.allowed = lambda condition: (received.append(condition.value), allowed(condition))[1]  # type: ignore[method-assign]
    pipeline(collection=stored).run([SearchRequest(query=QUERY, filter=condition) for condition in conditions])
    assert [type(value) for value in received] == [int, bool]


def test_the_contributions_in_an_explanation_add_up_to_the_score() -> None:
    searching = pipeline(rerankers={"length": LengthReranker()})
    for hit in run_one(searching, plan="best", explain=True, k=8).hits:
        assert hit.explanation is not None
        stages = {(stage["stage"], stage["name"]): stage for stage in hit.explanation["stages"]}
        assert list(stages) == [
            ("retrieve", "lexical"),
            ("retrieve", "dense"),
            ("fuse", "interpolation"),
            ("rescore", "multivector"),
            ("blend", "multivector"),
            ("rerank", "length"),
            ("blend", "length"),
        ]
        shares = [stage for (kind, _), stage in stages.items() if kind == "retrieve"]
        assert sum(stage["share"] for stage in shares) == pytest.approx(stages["fuse", "interpolation"]["score"])
        assert all(stage["share"] == pytest.approx(stage["weight"] * stage["value"]) for stage in shares)
        assert stages["rerank", "length"]["score"] == LengthReranker().score(Query("q", "any"), [hit.document])[0]
        assert stages["blend", "length"]["score"] == hit.score
        assert stages["blend", "length"]["rank"] == hit.rank


def test_the_explanation_of_a_single_channel_is_that_channel() -> None:
    for hit in run_one(pipeline(), plan="fast", explain=True).hits:
        assert hit.explanation == {
            "stages": [{"stage": "retrieve", "name": "lexical", "rank": hit.rank, "score": hit.score}]
        }


def test_a_document_that_a_channel_did_not_find_has_no_rank_there() -> None:
    result = run_one(pipeline(), explain=True, k=8, query="pebbles")
    lexical = [hit.explanation["stages"][0] for hit in result.hits if hit.explanation]
    assert [stage["rank"] for stage in lexical].count(1) == 1
    assert {stage["score"] for stage in lexical if stage["rank"] is None} == {None}


def test_without_explain_no_explanation_is_made() -> None:
    assert all(hit.explanation is None for hit in run_one(pipeline()).hits)


def test_every_stage_is_timed() -> None:
    result = run_one(pipeline(rerankers={"length": LengthReranker()}), plan="best", filter=lambda _: True)
    assert set(result.timings_ms) == {
        "filter",
        "encode",
        "retrieve:dense",
        "retrieve:lexical",
        "fuse",
        "rescore:multivector",
        "rerank:length",
        "documents",
    }
    assert all(value >= 0 for value in result.timings_ms.values())


def test_a_truncated_query_is_reported() -> None:
    assert run_one(pipeline(), query="one two three four five six seven eight nine").truncated_query
    assert not run_one(pipeline(), query="one two").truncated_query


def mixed_requests() -> list[SearchRequest]:
    plans: Sequence[str | Plan] = (
        "fast",
        "balanced",
        "best",
        Plan(channels={"lexical": ChannelPlan()}),
        Plan.model_validate({"channels": HYBRID, "fusion": {"method": "rrf", "k": 5}}),
        "no such plan",
    )
    queries = (QUERY, "who freed the lion", "crow and pitcher", "the slow tortoise won against the hare at last", " ")
    return [
        SearchRequest(query=query, plan=plan, k=1 + n % 5, explain=bool(n % 2))
        for n in range(7)
        for query in queries
        for plan in plans
    ][:64]


def test_results_are_the_same_bits_alone_and_in_a_batch_of_64() -> None:
    searching = pipeline(rerankers={"length": LengthReranker()})
    requests = mixed_requests()
    together = searching.run(requests)
    alone = [searching.run([request])[0] for request in requests]
    assert len(requests) == 64
    assert [comparable(answer) for answer in together] == [comparable(answer) for answer in alone]


def test_channels_are_fused_in_the_order_of_the_plan_whatever_else_is_in_the_batch() -> None:
    plans = [Plan.model_validate({"channels": {name: {} for name in names}}) for names in ORDERS]
    searching = pipeline()
    together = searching.run([SearchRequest(query=QUERY, plan=plan, explain=True) for plan in plans])
    for names, answer in zip(ORDERS, together, strict=True):
        assert isinstance(answer, SearchResult)
        for hit in answer.hits:
            assert hit.explanation is not None
            assert [stage["name"] for stage in hit.explanation["stages"][:-1]] == list(names)


def test_one_bad_request_fails_alone() -> None:
    answers = pipeline().run(
        [
            SearchRequest(query=QUERY),
            SearchRequest(query="   "),
            SearchRequest(query=QUERY, plan="none such"),
            SearchRequest(query=QUERY, filter="not a condition"),
            SearchRequest(query=QUERY),
        ]
    )
    assert [isinstance(a, InvalidInput) for a in answers] == [False, True, True, True, False]


def test_a_query_on_which_the_encoder_fails_fails_alone_without_internal_details() -> None:
    encoder = RecordingEncoder()
    encoder.fail_on = "poison"
    answers = pipeline(encoder=encoder).run([SearchRequest(query=q) for q in ("fox", "poison", "crow")])
    assert [type(answer) for answer in answers] == [SearchResult, Internal, SearchResult]
    assert isinstance(answers[1], Internal)
    assert "secret" not in answers[1].detail
    assert isinstance(answers[1].__cause__, RuntimeError)


def test_a_search_past_its_deadline_is_refused() -> None:
    clock = ManualClock()
    with pytest.raises(DeadlineExceeded, match="timeout_ms"):
        run_one(pipeline(clock=clock), deadline=clock.now)


def test_stages_past_the_deadline_are_skipped_and_reported() -> None:
    clock, stored, reranker = ManualClock(), collection(), LengthReranker()
    searching = pipeline(collection=stored, rerankers={"length": reranker}, clock=clock)
    stored.channels["dense"].retriever.before = lambda: clock.wait(2.0)
    result = run_one(searching, plan="best", deadline=clock.now + 1.0)
    assert result.degraded == ("rescore:multivector", "rerank:length")
    assert len(result.hits) == 8
    assert reranker.calls == []


def test_a_channel_past_the_deadline_is_skipped_if_another_was_searched() -> None:
    clock, stored = ManualClock(), collection()
    searching = pipeline(collection=stored, clock=clock)
    stored.channels["lexical"].retriever.before = lambda: clock.wait(2.0)
    result = run_one(searching, deadline=clock.now + 1.0)
    assert result.degraded == ("retrieve:dense",)
    assert doc_ids(result) == doc_ids(run_one(searching, plan="fast"))


def test_a_deadline_that_passes_before_any_channel_was_searched_is_an_error() -> None:
    clock, encoder = ManualClock(), RecordingEncoder()
    searching = pipeline(encoder=encoder, clock=clock)
    original = encoder.encode_queries
    encoder.encode_queries = lambda *args: (clock.wait(2.0), original(*args))[1]  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded, match="before any channel was searched"):
        run_one(searching, deadline=clock.now + 1.0)


def test_a_late_request_does_not_skip_a_stage_for_others_in_its_batch() -> None:
    clock, stored = ManualClock(), collection()
    searching = pipeline(collection=stored, clock=clock)
    stored.channels["dense"].retriever.before = lambda: clock.wait(2.0)
    late, patient = searching.run(
        [SearchRequest(query=QUERY, plan="best", deadline=clock.now + 1.0), SearchRequest(query=QUERY, plan="best")]
    )
    assert isinstance(late, SearchResult)
    assert isinstance(patient, SearchResult)
    assert late.degraded == ("rescore:multivector",)
    assert patient.degraded == ()
    assert "rescore:multivector" in patient.timings_ms


def test_a_channel_whose_vectors_the_encoder_lacks_is_not_offered() -> None:
    searching = pipeline(encoder=None)
    assert searching.capabilities.channels == ("lexical",)
    assert doc_ids(run_one(searching, query="pebbles")) == ["fable-1"]
    with pytest.raises(InvalidInput, match="has the channels lexical"):
        run_one(searching, plan=Plan(channels={"dense": ChannelPlan()}))


def test_warming_up_runs_every_plan() -> None:
    stored, reranker = collection(), LengthReranker()
    pipeline(collection=stored, rerankers={"length": reranker}).warm_up()
    assert all(stored.channels[name].retriever.calls for name in ("dense", "lexical"))
    assert reranker.calls


def test_warming_up_raises_what_a_search_raises() -> None:
    encoder = RecordingEncoder()
    encoder.fail_on = "document"
    with pytest.raises(Internal):
        pipeline(encoder=encoder).warm_up()


def test_an_empty_batch_gives_no_results() -> None:
    assert pipeline().run([]) == []


def test_closing_closes_the_collection() -> None:
    stored = collection()
    pipeline(collection=stored).close()
    assert stored.closed


def test_a_closed_pipeline_holds_no_reference_to_a_channel() -> None:
    stored = collection()
    retriever = weakref.ref(stored.channels["dense"].retriever)
    searching = pipeline(collection=stored)
    run_one(searching)
    searching.close()
    stored.channels = {}  # as a collection does when it is closed
    gc.collect()
    assert retriever() is None
