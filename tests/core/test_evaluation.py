"""Measures, significance and run files, against hand computations."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.errors import InvalidInput
from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate, holm, significance, strictly_falling, write_run


def test_ndcg_of_one_query_equals_the_hand_computation() -> None:
    qrels = [Qrel("q", "a", 1), Qrel("q", "b", 1)]
    run = [ScoredDoc("q", "x", 3.0), ScoredDoc("q", "a", 2.0), ScoredDoc("q", "b", 1.0)]
    ideal = 1 + 1 / np.log2(3)
    got = 1 / np.log2(3) + 1 / np.log2(4)
    assert evaluate(run, qrels, ["nDCG@10"]).means["nDCG@10"] == pytest.approx(got / ideal)


def test_a_judged_query_without_hits_counts_zero() -> None:
    qrels = [Qrel("q", "a", 1), Qrel("lost", "b", 1)]
    outcome = evaluate([ScoredDoc("q", "a", 1.0)], qrels, ["R@10"])
    assert outcome.per_query["R@10"] == {"q": 1.0, "lost": 0.0}
    assert outcome.means["R@10"] == 0.5


def test_an_unjudged_query_is_ignored() -> None:
    run = [ScoredDoc("q", "a", 1.0), ScoredDoc("unjudged", "a", 1.0)]
    assert set(evaluate(run, [Qrel("q", "a", 1)], ["R@10"]).per_query["R@10"]) == {"q"}


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(InvalidInput, match="nDGC@10"):
        evaluate([], [Qrel("q", "a", 1)], ["nDGC@10"])


def test_evaluation_without_judgements_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no judgements"):
        evaluate([ScoredDoc("q", "a", 1.0)], [])


def test_significance_of_few_queries_is_the_exact_sign_flip_count() -> None:
    a = {"1": 0.5, "2": 0.7, "3": 0.9, "4": 0.4}
    b = {"1": 0.1, "2": 0.6, "3": 0.2, "4": 0.5}
    differences = np.array([a[q] - b[q] for q in a])
    observed = abs(differences.mean())
    flips = [abs((differences * signs).mean()) >= observed - 1e-12 for signs in product([1, -1], repeat=4)]
    assert significance(a, b) == pytest.approx(np.mean(flips))


def test_equal_runs_are_not_significant() -> None:
    assert significance({"1": 0.5, "2": 0.1}, {"1": 0.5, "2": 0.1}) == 1.0


def test_significance_refuses_different_queries() -> None:
    with pytest.raises(InvalidInput, match="same queries"):
        significance({"1": 0.5}, {"2": 0.5})


def test_holm_equals_the_hand_computation() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_tied_scores_become_strictly_falling_by_single_steps() -> None:
    scores = strictly_falling(np.array([2.0, 2.0, 2.0, 1.0], dtype=np.float32))
    assert np.all(np.diff(scores) < 0)
    assert scores[0] == 2.0
    assert scores[3] == 1.0
    assert scores[2] == pytest.approx(2.0, abs=1e-6)


def test_a_run_file_keeps_the_order_served_even_under_ties(tmp_path: Path) -> None:
    scores = strictly_falling(np.array([1.0, 1.0, 1.0], dtype=np.float32))
    run = [ScoredDoc("q", doc_id, float(score)) for doc_id, score in zip(["c", "a", "b"], scores, strict=True)]
    write_run(tmp_path / "run", run, "tag")
    lines = [line.split() for line in (tmp_path / "run").read_text().splitlines()]
    assert [line[2] for line in lines] == ["c", "a", "b"]
    assert [line[3] for line in lines] == ["1", "2", "3"]
    read = np.array([float(line[4]) for line in lines], dtype=np.float32)
    assert np.all(np.diff(read) < 0)
