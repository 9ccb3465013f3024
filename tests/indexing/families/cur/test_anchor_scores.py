"""The score matrix is computed once: a killed build reuses its pieces, and the cost is estimated in advance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import Document, Encoding, Query
from chamfer.indexing.families.cur.anchor_scores import AnchorScorer, CostEstimate
from chamfer.indexing.families.cur.family import CurConfig, CurFamily

DOCUMENTS = [Document(f"d{i}", f"text {i} " + "x" * (i % 7), f"title {i}" if i % 2 else "") for i in range(90)]
QUERIES = [f"question {i}" for i in range(40)]


class LengthReranker:
    """Scores by lengths; counts pairs, and raises after `dies_after` of them."""

    name = "lengths"
    score_kind = "logit"
    reads_images = False

    def __init__(self, dies_after: int = 10**9, fingerprint: str = "lengths") -> None:
        self.fingerprint = fingerprint
        self.pairs = 0
        self._dies_after = dies_after

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        self.pairs += len(documents)
        if self.pairs > self._dies_after:
            raise KeyboardInterrupt
        return np.array([len(query.text) * 0.5 - len(d.content) for d in documents], dtype=np.float32)


def test_the_matrix_holds_every_pair(tmp_path: Path) -> None:
    anchors = AnchorScorer(LengthReranker(), QUERIES, tmp_path).score(DOCUMENTS)
    expected = [[len(q) * 0.5 - len(d.content) for q in QUERIES] for d in DOCUMENTS]
    np.testing.assert_array_equal(anchors.values.values, np.array(expected, dtype=np.float32))
    assert anchors.queries == tuple(QUERIES)


def test_a_pair_reranker_scores_many_pairs_per_call_and_gives_the_same_matrix(tmp_path: Path) -> None:
    class Pairs(LengthReranker):
        calls = 0

        def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
            self.calls += 1
            return np.concatenate([self.score(query, [document]) for query, document in pairs])

    by_list = AnchorScorer(LengthReranker(), QUERIES, tmp_path / "lists").score(DOCUMENTS)
    reranker = Pairs()
    by_pairs = AnchorScorer(reranker, QUERIES, tmp_path / "pairs").score(DOCUMENTS)
    np.testing.assert_array_equal(by_pairs.values.values, by_list.values.values)
    assert reranker.calls < 90 * 40 / 200


def test_a_score_that_is_not_finite_names_document_and_query_and_nothing_is_stored(tmp_path: Path) -> None:
    class Broken(LengthReranker):
        def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
            scores = super().score(query, documents)
            scores[[d.doc_id == "d3" and query.text == "question 7" for d in documents]] = np.nan
            return scores

    with pytest.raises(InvalidInput, match="nan for document 'd3' with the anchor query 'question 7'"):
        AnchorScorer(Broken(), QUERIES, tmp_path).score(DOCUMENTS)
    assert not list(tmp_path.glob("pairs-*"))


def test_killed_scoring_resumes_and_gives_the_same_matrix(tmp_path: Path) -> None:
    whole = AnchorScorer(LengthReranker(), QUERIES, tmp_path / "whole").score(DOCUMENTS)
    with pytest.raises(KeyboardInterrupt):
        AnchorScorer(LengthReranker(dies_after=2500), QUERIES, tmp_path / "killed").score(DOCUMENTS)
    again = LengthReranker()
    resumed = AnchorScorer(again, QUERIES, tmp_path / "killed").score(DOCUMENTS)
    assert resumed.values.values.tobytes() == whole.values.values.tobytes()
    assert again.pairs == 90 * 40 - 2000  # two pieces of 25 documents had been finished


def test_other_queries_or_another_reranker_reuse_no_scores(tmp_path: Path) -> None:
    AnchorScorer(LengthReranker(), QUERIES, tmp_path).score(DOCUMENTS)
    for reranker, queries in ((LengthReranker(fingerprint="other"), QUERIES), (LengthReranker(), QUERIES[:-1])):
        AnchorScorer(reranker, queries, tmp_path).score(DOCUMENTS)
        assert reranker.pairs == 90 * len(queries)


def test_an_estimate_counts_all_pairs_and_gives_the_time(tmp_path: Path) -> None:
    estimate = AnchorScorer(LengthReranker(), QUERIES, tmp_path).estimate(DOCUMENTS, 20_000)
    assert estimate.pairs == 20_000 * 40
    assert estimate.pairs_per_second > 0
    assert str(CostEstimate(2_000_000, 26.6)) == "2,000,000 pairs at 26.6 a second: about 20 h 53 min"
    assert str(CostEstimate(6_000, 50.0)).endswith("about 2.0 min")


def test_the_estimate_is_right_for_documents_of_unequal_lengths(tmp_path: Path) -> None:
    now = 0.0

    class Slow(LengthReranker):
        def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
            nonlocal now
            now += 0.001 + sum(0.001 * len(d.content) for d in documents)  # the cost of a call, and that of each length
            return super().score(query, documents)

    lengths = np.exp(np.random.default_rng(0).normal(4, 1, 900)).astype(int)  # a few documents hold half of the text
    documents = [Document(f"d{i}", "x" * n) for i, n in enumerate(lengths.tolist())]
    scorer = AnchorScorer(Slow(), QUERIES, tmp_path, clock=lambda: now)
    expected = scorer.estimate(documents, len(documents)).seconds
    begin = now
    scorer.score(documents)
    assert expected == pytest.approx(now - begin, rel=0.1)


def test_columns_of_another_reranker_are_refused_by_the_collection(tmp_path: Path) -> None:
    encoding = _encoding(AnchorScorer(LengthReranker(), QUERIES, tmp_path))
    plain = CurFamily(CurConfig())
    family = plain.with_codec(plain.learn(encoding))
    assert family.queries == tuple(QUERIES)
    with pytest.raises(Incompatible, match="reranker"):
        family.pack(DOCUMENTS, _encoding(AnchorScorer(LengthReranker(fingerprint="other"), QUERIES, tmp_path)))
    with pytest.raises(Incompatible, match="anchor queries"):
        family.pack(DOCUMENTS, _encoding(AnchorScorer(LengthReranker(), QUERIES[::-1], tmp_path)))


def test_no_anchor_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="anchor_queries"):
        AnchorScorer(LengthReranker(), [], tmp_path)


def _encoding(scorer: AnchorScorer) -> Encoding:
    n = len(DOCUMENTS)
    return Encoding(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=bool), anchors=scorer.score(DOCUMENTS))
