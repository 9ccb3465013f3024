"""Family `cur` in collections and plans: building, resuming, updates, and search alone and behind a first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_encoders import make_documents

from chamfer.core.errors import DeadlineExceeded, Incompatible, InvalidInput
from chamfer.core.types import Document, Query
from chamfer.indexing.building.builder import BuildRun, build
from chamfer.indexing.building.updates import add, compact, delete
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan
from chamfer.service.search.request import SearchRequest, SearchResult

DOCUMENTS = [d for d in make_documents(150, seed=2) if d.text]
QUERIES = [Query(f"q{i}", f"w{i} w{i + 1}") for i in range(12)]
CONFIG = CollectionConfig(
    channels=("lexical", "cur"), parameters={"cur": {"anchor_queries": 12, "anchor_items": 10}}, block_documents=40
)


class OverlapReranker:
    """Shared words, weighted by their number; records every pair, and raises after `dies_after` of them."""

    name = "overlap"
    score_kind = "logit"
    reads_images = False

    def __init__(self, dies_after: int = 10**9, fingerprint: str = "overlap") -> None:
        self.fingerprint = fingerprint
        self.scored_pairs: list[tuple[str, str]] = []
        self._dies_after = dies_after

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        return self.score_pairs([(query, document) for document in documents])

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        self.scored_pairs += [(query.text, document.doc_id) for query, document in pairs]
        if len(self.scored_pairs) > self._dies_after:
            raise KeyboardInterrupt
        return np.array([_overlap(query.text, document.content) for query, document in pairs], dtype=np.float32)


def _overlap(query: str, text: str) -> float:
    words = text.lower().split()
    return sum(words.count(word) * (1 + int(word[1:]) / 50) for word in query.split()) - 0.01 * len(words)


def built(path: Path, reranker: Any = None) -> Path:
    run = BuildRun(reranker=reranker or OverlapReranker(), queries=QUERIES)
    build(DOCUMENTS, path, encoder=None, config=CONFIG, run=run)
    return path


def exact(query: str, documents: Sequence[Document] = DOCUMENTS) -> list[str]:
    scores = [_overlap(query, d.content) for d in documents]
    return [documents[i].doc_id for i in np.argsort(-np.array(scores, dtype=np.float32), kind="stable")]


def searched(path: Path, plan: dict[str, Any], reranker: OverlapReranker, **more: Any) -> SearchResult:
    pipeline = Pipeline(Collection.open(path), None, {"overlap": reranker}, **more.pop("pipeline", {}))
    [answer] = pipeline.run([SearchRequest(query="w3 w4 w5", k=10, plan=Plan.model_validate(plan), **more)])
    if not isinstance(answer, SearchResult):
        raise answer
    return answer


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_killed_build_resumes_and_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = built(tmp_path / "whole")
    # the estimate scores 24 documents with one query and then 8; every block of 40 is one piece
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "killed", OverlapReranker(dies_after=9 * 24 + 2 * 480 + 100))
    again = OverlapReranker()
    built(tmp_path / "killed", again)
    assert content(tmp_path / "killed") == content(whole)
    assert len(again.scored_pairs) < 12 * len(DOCUMENTS)


def test_the_build_reports_the_cost_of_scoring(tmp_path: Path) -> None:
    notices: list[str] = []
    run = BuildRun(reranker=OverlapReranker(), queries=QUERIES, total=len(DOCUMENTS), notice=notices.append)
    build(DOCUMENTS, tmp_path / "c", encoder=None, config=CONFIG, run=run)
    assert len(notices) == 1
    assert f"{12 * len(DOCUMENTS):,} pairs" in notices[0]


def test_a_cross_encoder_retrieves_alone(tmp_path: Path) -> None:
    answer = searched(
        built(tmp_path / "c"), {"channels": {}, "cur": {"budget": 60, "method": "adacur"}}, OverlapReranker()
    )
    assert [hit.doc_id for hit in answer.hits][:3] == exact("w3 w4 w5")[:3]


def test_no_pair_is_scored_twice_when_a_reranking_follows(tmp_path: Path) -> None:
    reranker = OverlapReranker()
    plan = {
        "channels": {"lexical": {"depth": 50}},
        "cur": {"budget": 40},
        "rerank": {"model": "overlap", "depth": 60},
    }
    answer = searched(built(tmp_path / "c"), plan, reranker, explain=True)
    assert len(reranker.scored_pairs) == len(set(reranker.scored_pairs))
    assert 40 <= len(reranker.scored_pairs) <= 90
    stages = [stage for hit in answer.hits for stage in hit.explanation["stages"] if stage["stage"] == "cur"]  # type: ignore[index]
    assert any(stage["estimate"] is not None for stage in stages)
    assert all(stage["estimate"] is None or np.isfinite(stage["estimate"]) for stage in stages)


def test_rows_beyond_the_budget_follow_those_that_were_scored(tmp_path: Path) -> None:
    plan = {"channels": {"lexical": {"depth": 50}}, "cur": {"budget": 5, "rounds": 1}}
    answer = searched(built(tmp_path / "c"), plan, OverlapReranker(), explain=True)
    scored = [hit.explanation["stages"][-1]["score"] is not None for hit in answer.hits]  # type: ignore[index]
    assert scored == [True] * 5 + [False] * 5
    assert all(a.score >= b.score for a, b in zip(answer.hits, answer.hits[1:], strict=False))


def test_an_interpolated_answer_stands_between_both_rankings(tmp_path: Path) -> None:
    path = built(tmp_path / "c")
    first = searched(path, {"channels": {"lexical": {}}}, OverlapReranker())
    plan = {"channels": {"lexical": {}}, "cur": {"budget": 30, "rounds": 1, "interpolate": 0.0}}
    assert [h.doc_id for h in searched(path, plan, OverlapReranker()).hits] == [h.doc_id for h in first.hits]


def test_adding_deleting_and_compacting_leave_an_index_that_equals_a_fresh_one(tmp_path: Path) -> None:
    path = built(tmp_path / "c")
    newer = [Document(f"new{i}", f"w3 w4 w{i}") for i in range(20)]
    add(path, newer, encoder=None, run=BuildRun(reranker=OverlapReranker()))
    delete(path, [d.doc_id for d in DOCUMENTS[:30]])
    plan = {"channels": {}, "cur": {"budget": 50, "method": "adacur"}}
    grown = searched(path, plan, OverlapReranker())
    compact(path)
    compacted = searched(path, plan, OverlapReranker())
    fresh = tmp_path / "fresh"
    run = BuildRun(reranker=OverlapReranker(), queries=QUERIES)
    build([*DOCUMENTS[30:], *newer], fresh, encoder=None, config=CONFIG, run=run)
    expected = searched(fresh, plan, OverlapReranker())
    for response in (grown, compacted):
        assert [(h.doc_id, h.score) for h in response.hits] == [(h.doc_id, h.score) for h in expected.hits]


def test_adding_with_another_reranker_is_refused(tmp_path: Path) -> None:
    path = built(tmp_path / "c")
    with pytest.raises(Incompatible, match="reranker"):
        add(path, [Document("x", "w1")], encoder=None, run=BuildRun(reranker=OverlapReranker(fingerprint="other")))


def test_without_a_reranker_nothing_is_built(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"build\.parameters\.cur\.reranker"):
        build(DOCUMENTS, tmp_path / "c", encoder=None, config=CONFIG)


def test_a_plan_for_a_reranker_that_is_not_loaded_is_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(Collection.open(built(tmp_path / "c")), None, {"other": OverlapReranker(fingerprint="other")})
    [answer] = pipeline.run([SearchRequest(query="w1", plan=Plan.model_validate({"channels": {}, "cur": {}}))])
    assert isinstance(answer, InvalidInput)
    assert "the reranker that it was built with" in answer.detail


def test_a_timeout_before_any_call_is_an_error_and_a_later_one_gives_fewer_results(tmp_path: Path) -> None:
    path = built(tmp_path / "c")
    now = iter([*np.linspace(0, 1, 500)])
    clock = {"pipeline": {"clock": lambda: float(next(now))}}
    plan = {"channels": {"lexical": {}}, "cur": {"budget": 100, "rounds": 20}}
    answer = searched(path, plan, OverlapReranker(), deadline=0.02, **clock)
    assert answer.degraded == ("cur:cur",)
    now = iter([0.0, 0.0, *[9.0] * 50])
    with pytest.raises(DeadlineExceeded):
        searched(path, {"channels": {}, "cur": {}}, OverlapReranker(), deadline=1.0, **clock)
