"""Fusion: each function against its formula by hand, a slow oracle, and its identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.types import Candidates
from chamfer.indexing.kernels.topk import as_candidates
from chamfer.service.search.fusion import (
    Fused,
    blend,
    distribution_based,
    interpolate,
    normalise,
    reciprocal_rank,
    scored_head_first,
    scored_rows_first,
)


def candidates(*queries: dict[int, float]) -> Candidates:
    """Queries given as row -> score, ranked and padded."""
    depth = max(map(len, queries))
    rows = np.full((len(queries), depth), -1, dtype=np.int64)
    scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
    for index, query in enumerate(queries):
        ranked = sorted(query.items(), key=lambda item: (-np.float32(item[1]), item[0]))
        rows[index, : len(ranked)] = [row for row, _ in ranked]
        scores[index, : len(ranked)] = [score for _, score in ranked]
    return Candidates(rows, scores)


def as_dict(fused: Fused, query: int = 0) -> dict[int, float]:
    rows, scores = fused.candidates.of(query)
    return dict(zip(rows.tolist(), scores.tolist(), strict=True))


runs = st.dictionaries(st.integers(0, 30), st.floats(-100, 100, width=32), max_size=12).map(
    lambda q: candidates(q, {3: 1.0})
)
some_runs = runs.filter(lambda run: run.rows[0, 0] >= 0)


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = reciprocal_rank(
        {"a": candidates({7: 9.0, 3: 5.0}), "b": candidates({3: 0.2, 5: 0.1})}, {"a": 1.0, "b": 2.0}, k=60.0
    )
    assert as_dict(fused) == pytest.approx({3: 1 / 62 + 2 / 61, 5: 2 / 62, 7: 1 / 61})
    assert fused.candidates.rows.tolist() == [[3, 5, 7]]
    assert fused.channels["a"].ranks.tolist() == [[2, 0, 1]]
    assert fused.channels["b"].shares[0].tolist() == pytest.approx([2 / 61, 2 / 62, 0.0])


def test_interpolation_with_min_max_by_hand() -> None:
    fused = interpolate(
        {"a": candidates({1: 10.0, 2: 5.0, 3: 0.0}), "b": candidates({2: 4.0, 4: 2.0})}, {"a": 0.6, "b": 0.4}
    )
    assert as_dict(fused) == pytest.approx({1: 0.6, 2: 0.6 * 0.5 + 0.4, 3: 0.0, 4: 0.0})
    assert fused.candidates.rows.tolist() == [[2, 1, 3, 4]]  # the tie of 3 and 4 is ordered by row
    assert fused.channels["b"].ranks.tolist() == [[1, 0, 0, 2]]
    assert np.isnan(fused.channels["b"].scores[0, 1])


def test_without_normalisation_a_missing_document_gets_the_channels_lowest_score() -> None:
    fused = interpolate({"a": candidates({1: 10.0, 2: 5.0}), "b": candidates({3: 4.0})}, {"a": 1.0, "b": 2.0}, "none")
    assert as_dict(fused) == {1: 10.0 + 8.0, 2: 5.0 + 8.0, 3: 5.0 + 8.0}


def test_z_scores_have_mean_zero_and_deviation_one() -> None:
    values, missing = normalise(np.asarray([4.0, 2.0, 0.0], dtype=np.float32), "z_score")
    assert values.tolist() == pytest.approx([1.2247449, 0.0, -1.2247449])
    assert missing == values[-1]


@pytest.mark.parametrize(("normalisation", "value"), [("min_max", 1.0), ("z_score", 0.0), ("none", 3.0)])
def test_equal_scores_are_normalised_without_dividing_by_zero(normalisation: str, value: float) -> None:
    values, _ = normalise(np.full(4, 3.0, dtype=np.float32), normalisation)
    assert values.tolist() == [value] * 4


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(InvalidInput, match="expected none, min_max, centred or z_score"):
        normalise(np.ones(2, dtype=np.float32), "softmax")


@settings(deadline=None, max_examples=60)
@given(some_runs, st.sampled_from(["none", "min_max", "z_score"]))
def test_fusing_a_run_with_itself_inverts_no_pair(run: Candidates, normalisation: str) -> None:
    fused = interpolate({"a": run, "b": run}, {"a": 0.7, "b": 0.3}, normalisation)
    rank_by_row = {row: rank for rank, row in enumerate(run.of(0)[0].tolist())}
    rows, scores = fused.candidates.of(0)
    assert set(rows.tolist()) == set(rank_by_row)
    for i in range(len(rows) - 1):  # rounding may make neighbours equal, which are then ordered by row
        assert rank_by_row[int(rows[i])] < rank_by_row[int(rows[i + 1])] or scores[i] == scores[i + 1]


@settings(deadline=None, max_examples=60)
@given(some_runs)
def test_reciprocal_rank_fusion_of_a_run_with_itself_keeps_its_order(run: Candidates) -> None:
    fused = reciprocal_rank({"a": run, "b": run}, {"a": 1.0, "b": 1.0})
    assert fused.candidates.rows.tolist() == run.rows.tolist()


@settings(deadline=None, max_examples=60)
@given(some_runs, runs)
def test_a_channel_of_weight_zero_does_not_contribute(run: Candidates, other: Candidates) -> None:
    fused = interpolate({"a": run, "b": other}, {"a": 1.0, "b": 0.0}, "none")
    assert fused.candidates.rows.tolist() == run.rows.tolist()
    assert fused.candidates.scores.tolist() == run.scores.tolist()
    assert set(fused.channels) == {"a"}


@settings(deadline=None, max_examples=60)
@given(runs, runs, st.floats(0.125, 4), st.floats(0.125, 4))
def test_interpolation_agrees_with_a_slow_oracle(a: Candidates, b: Candidates, wa: float, wb: float) -> None:
    fused = interpolate({"a": a, "b": b}, {"a": wa, "b": wb})
    for query in range(2):
        expected: dict[int, float] = {}
        for run, weight in ((a, wa), (b, wb)):
            rows, scores = run.of(query)
            low, high = (float(scores.min()), float(scores.max())) if len(rows) else (0.0, 0.0)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
                value = (score - low) / (high - low) if high > low else 1.0
                expected[row] = expected.get(row, 0.0) + weight * value
        assert as_dict(fused, query) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(runs, runs)
def test_fused_scores_descend_ties_are_ordered_by_row_and_shares_add_up(a: Candidates, b: Candidates) -> None:
    fused = interpolate({"a": a, "b": b}, {"a": 0.5, "b": 0.25})
    for query in range(2):
        rows, scores = fused.candidates.of(query)
        pairs = list(zip((-scores).tolist(), rows.tolist(), strict=True))
        assert pairs == sorted(pairs)
        shares = sum(share.shares[query, : len(rows)] for share in fused.channels.values())
        assert np.allclose(shares, scores, atol=1e-5)
        assert (fused.candidates.rows[query, len(rows) :] == -1).all()


def test_runs_over_different_numbers_of_queries_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be fused"):
        interpolate({"a": candidates({1: 1.0}), "b": candidates({1: 1.0}, {2: 1.0})}, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_negative_or_non_finite_weight_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="fusion weight"):
        interpolate({"a": candidates({1: 1.0})}, {"a": weight})


def test_a_missing_weight_and_a_k_of_zero_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fusion weight None"):
        interpolate({"a": candidates({1: 1.0})}, {})
    with pytest.raises(InvalidInput, match="expected above 0"):
        reciprocal_rank({"a": candidates({1: 1.0})}, {"a": 1.0}, k=0.0)


def test_scored_documents_come_first_and_the_others_keep_order_and_differences() -> None:
    current = candidates({1: 9.0, 2: 8.0, 3: 5.0, 4: 3.0})
    ranked = scored_head_first(current, 2, np.asarray([0.1, 0.7], dtype=np.float32))
    assert ranked.rows.tolist() == [[2, 1, 3, 4]]
    assert ranked.scores[0].tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1 - 2.0], abs=1e-6)
    assert (np.diff(ranked.scores[0]) < 0).all()


def test_scoring_all_documents_sorts_by_the_new_scores_with_ties_by_row() -> None:
    ranked = scored_head_first(candidates({5: 3.0, 1: 2.0, 3: 1.0}), 10, np.asarray([1.0, 2.0, 1.0], dtype=np.float32))
    assert ranked.rows.tolist() == [[1, 3, 5]]


def test_a_stage_that_gives_nan_or_too_few_scores_is_an_internal_error() -> None:
    current = candidates({1: 9.0, 2: 8.0})
    for scores in ([1.0], [1.0, float("nan")]):
        with pytest.raises(Internal, match="not finite"):
            scored_head_first(current, 2, np.asarray(scores, dtype=np.float32))


def test_blending_with_share_one_or_zero_keeps_one_order() -> None:
    new, old = np.asarray([1.0, 3.0, 2.0], dtype=np.float32), np.asarray([9.0, 5.0, 1.0], dtype=np.float32)
    assert blend(1.0, new, old).tolist() == [0.0, 1.0, 0.5]
    assert blend(0.0, new, old).tolist() == [1.0, 0.5, 0.0]


@settings(deadline=None, max_examples=60)
@given(some_runs, some_runs)
def test_centred_scores_are_min_max_scores_less_half_the_weights(a: Candidates, b: Candidates) -> None:
    weights = {"a": 0.5, "b": 0.25}
    runs = {"a": a, "b": b}
    centred, min_max = (interpolate(runs, weights, name) for name in ("centred", "min_max"))
    lower = 0.5 * sum(weights[name] for name, run in runs.items() if len(run.of(0)[0]))
    assert as_dict(centred) == pytest.approx({row: score - lower for row, score in as_dict(min_max).items()}, abs=1e-5)


def test_distribution_based_fusion_by_hand() -> None:
    fused = distribution_based(
        {"a": candidates({1: 4.0, 2: 2.0, 3: 0.0}), "b": candidates({2: 7.0})}, {"a": 2.0, "b": 1.0}
    )
    # mean 2, sample deviation 2: (s - 2 + 6) / 12
    assert as_dict(fused) == pytest.approx({1: 2 * 8 / 12, 2: 2 * 6 / 12 + 0.5, 3: 2 * 4 / 12})


def test_distribution_based_fusion_gives_equal_scores_one_half() -> None:
    assert as_dict(distribution_based({"a": candidates({1: 3.0, 2: 3.0})}, {"a": 1.0})) == {1: 0.5, 2: 0.5}


def distinct(run: Candidates) -> bool:
    """Whether no two scores are nearly equal: rounding would decide their order, here and in the reference."""
    scores = run.of(0)[1].astype(np.float64)
    return bool(len(scores) < 2 or (-np.diff(scores)).min() > 1e-3)


spread_runs = some_runs.map(lambda run: Candidates(run.rows[:1], run.scores[:1])).filter(distinct)


def points(run: Candidates) -> list[Any]:
    from qdrant_client.http.models import ScoredPoint

    rows, scores = run.of(0)
    return [ScoredPoint(id=int(r), version=0, score=float(s)) for r, s in zip(rows, scores, strict=True)]


def by_qdrant(runs: Sequence[Any]) -> dict[int, float]:
    return {int(point.id): float(point.score) for point in runs}


@settings(deadline=None, max_examples=60)
@given(spread_runs, spread_runs, st.integers(2, 80))
def test_reciprocal_rank_fusion_equals_qdrants_with_k_one_lower(a: Candidates, b: Candidates, k: int) -> None:
    from qdrant_client.hybrid.fusion import reciprocal_rank_fusion

    theirs = by_qdrant(reciprocal_rank_fusion([points(a), points(b)], limit=100, ranking_constant_k=k))
    assert as_dict(reciprocal_rank({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, k=k - 1)) == pytest.approx(theirs, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(spread_runs, spread_runs)
def test_fusion_by_distribution_equals_qdrants(a: Candidates, b: Candidates) -> None:
    from qdrant_client.hybrid.fusion import distribution_based_score_fusion

    theirs = by_qdrant(distribution_based_score_fusion([points(a), points(b)], limit=100))
    assert as_dict(distribution_based({"a": a, "b": b}, {"a": 1.0, "b": 1.0})) == pytest.approx(
        theirs, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_whole_weight_on_one_channel_gives_its_order_alone(first: str) -> None:
    runs = {"a": candidates({1: 3.0, 2: 1.0}), "b": candidates({5: 0.2, 1: 0.1})}
    weights = {name: float(name == first) for name in runs}
    for fused in (interpolate(runs, weights), reciprocal_rank(runs, weights), distribution_based(runs, weights)):
        assert fused.candidates.rows.tolist() == runs[first].rows.tolist()


@settings(deadline=None, max_examples=60)
@given(spread_runs)
def test_fusing_a_run_with_itself_by_distribution_keeps_its_order(run: Candidates) -> None:
    fused = distribution_based({"a": run, "b": run}, {"a": 0.7, "b": 0.3})
    assert fused.candidates.rows.tolist() == run.rows.tolist()


@settings(deadline=None, max_examples=60)
@given(spread_runs, spread_runs, st.sampled_from([0.5, 4.0]), st.integers(-8, 8))
def test_min_max_fusion_does_not_depend_on_a_channels_scale(
    a: Candidates, b: Candidates, times: float, plus: int
) -> None:
    moved = Candidates(
        a.rows, np.where(a.rows >= 0, a.scores * np.float32(times) + np.float32(plus), -np.inf).astype(np.float32)
    )
    for normalisation in ("min_max", "centred", "z_score"):
        here, there = (interpolate({"a": run, "b": b}, {"a": 0.5, "b": 0.5}, normalisation) for run in (a, moved))
        assert as_dict(here) == pytest.approx(as_dict(there), abs=1e-3)


def test_scored_rows_come_first_whether_or_not_they_were_in_the_ranking() -> None:
    current = as_candidates([(np.array([7, 3, 9]), np.array([0.9, 0.5, 0.1], dtype=np.float32))], 3)
    ranked = scored_rows_first(current, np.array([3, 42]), np.array([-2.0, -1.0], dtype=np.float32))
    assert ranked.rows.tolist() == [[42, 3, 7, 9]]
    assert ranked.scores[0, 1] == -2.0
    gaps = np.diff(ranked.scores[0])
    assert np.all(gaps < 0)
    np.testing.assert_allclose(gaps[2], 0.1 - 0.9, rtol=1e-5)


def test_scoring_no_documents_leaves_the_ranking_unchanged() -> None:
    current = as_candidates([(np.array([7, 3]), np.array([0.9, 0.5], dtype=np.float32))], 2)
    ranked = scored_rows_first(current, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    np.testing.assert_array_equal(ranked.rows, current.rows)
    np.testing.assert_array_equal(ranked.scores, current.scores)
