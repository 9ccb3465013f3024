"""The mathematics of CUR: where it is exact, where it must not blow up, and what it does not depend on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core.errors import InvalidInput
from chamfer.indexing.kernels.cur import cur_scores, fit_query, pick_diverse, shuffled, truncated_pseudo_inverse


def low_rank(rank: int, n_queries: int, n_items: int, seed: int, noise: float = 0.0) -> np.ndarray:
    """A score matrix f64 [queries, items]."""
    draw = np.random.default_rng(seed)
    exact = draw.standard_normal((n_queries, rank)) @ draw.standard_normal((rank, n_items))
    return exact + noise * draw.standard_normal(exact.shape)


def relative_error(estimates: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(estimates - exact) / np.linalg.norm(exact))


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 12), extra_q=st.integers(0, 8), extra_i=st.integers(0, 8), seed=st.integers(0, 10**6))
def test_cur_is_exact_when_the_intersection_has_the_rank_of_the_matrix(
    rank: int, extra_q: int, extra_i: int, seed: int
) -> None:
    matrix = low_rank(rank, 40, 150, seed)
    anchors, items = np.arange(rank + extra_q), np.arange(rank + extra_i)
    columns = matrix[anchors].T
    for query in (38, 39):
        estimates = cur_scores(columns, items, matrix[query, items], 1e-10)
        assert relative_error(estimates, matrix[query]) < 1e-7


def test_exactness_holds_at_rank_twelve_to_ten_decimals_and_gives_the_whole_order() -> None:
    matrix = low_rank(12, 300, 2000, 3)
    items = np.arange(0, 2000, 100)
    estimates = cur_scores(matrix[:20].T, items, matrix[250, items], 0.0)
    assert relative_error(estimates, matrix[250]) < 1e-10
    np.testing.assert_array_equal(np.argsort(-estimates)[:100], np.argsort(-matrix[250])[:100])


def test_float32_columns_do_not_blow_up() -> None:
    matrix = low_rank(12, 300, 2000, 4).astype(np.float32)
    items = np.arange(0, 2000, 40)
    estimates = cur_scores(matrix[:60].T, items, matrix[299, items].astype(np.float64), 1e-6)
    assert relative_error(estimates, matrix[299].astype(np.float64)) < 1e-5


def test_the_default_cut_off_has_no_peak_where_both_anchors_are_as_many() -> None:
    """Sheet 3.6: rank 12 with noise 0.3 and 100 items errs by 1.16 at 100 queries without a cut, by 0.09 with one."""
    matrix = low_rank(12, 400, 2000, 5, noise=0.3)
    items = np.arange(0, 2000, 20)
    errors, uncut = {}, {}
    for n in (50, 100, 150, 300):
        columns = matrix[:n].T
        for cutoff, by_n in ((0.1, errors), (0.0, uncut)):
            estimates = np.stack([cur_scores(columns, items, matrix[q, items], cutoff) for q in range(380, 400)])
            by_n[n] = relative_error(estimates, matrix[380:400])
    assert uncut[100] > 3 * uncut[300]
    assert max(errors.values()) < 0.15
    assert errors[100] <= errors[50] + 0.01
    assert errors[300] <= errors[100] + 0.01


def test_error_falls_with_anchors_on_a_decaying_spectrum() -> None:
    draw = np.random.default_rng(6)
    left, _ = np.linalg.qr(draw.standard_normal((200, 200)))
    right, _ = np.linalg.qr(draw.standard_normal((1000, 200)))
    matrix = (left * np.exp(-np.arange(200) / 10)) @ right.T
    errors = []
    for n in (5, 10, 20, 40, 80):
        items = shuffled(np.arange(1000, dtype=np.uint64), 1)[: 2 * n]
        estimates = np.stack([cur_scores(matrix[:n].T, items, matrix[q, items], 1e-6) for q in range(150, 200)])
        errors.append(relative_error(estimates, matrix[150:]))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.1


def test_an_anchor_query_is_reproduced_exactly_with_at_least_as_many_items() -> None:
    matrix = low_rank(60, 80, 500, 7)
    items = np.arange(90)
    estimates = cur_scores(matrix[:40].T, items, matrix[7, items], 0.0)
    assert relative_error(estimates, matrix[7]) < 1e-9


def test_permuting_items_permutes_the_estimates() -> None:
    matrix = low_rank(20, 60, 300, 8, noise=0.2)
    items = np.arange(0, 300, 7)
    order = np.random.default_rng(9).permutation(300)
    new_position = np.argsort(order)
    plain = cur_scores(matrix[:30].T, items, matrix[50, items], 0.05)
    permuted = cur_scores(matrix[:30, order].T, new_position[items], matrix[50, items], 0.05)
    np.testing.assert_allclose(permuted, plain[order], atol=1e-9)


def test_the_oracle_core_errs_less_than_the_intersection() -> None:
    matrix = low_rank(30, 80, 400, 10, noise=0.5)
    rows, items = np.arange(40), np.arange(0, 400, 8)
    first, second = matrix[:, items], matrix[rows]
    oracle = first @ np.linalg.pinv(first) @ matrix @ np.linalg.pinv(second) @ second
    crossed = np.stack([cur_scores(second.T, items, scores[items], 0.0) for scores in matrix])
    assert relative_error(oracle, matrix) <= relative_error(crossed, matrix)


def test_the_pseudo_inverse_is_numpys_at_the_same_cut() -> None:
    matrix = np.random.default_rng(11).standard_normal((30, 20))
    for cutoff in (1e-12, 0.05, 0.4):
        np.testing.assert_allclose(
            truncated_pseudo_inverse(matrix, cutoff), np.linalg.pinv(matrix, rcond=cutoff), atol=1e-10
        )


def test_a_fit_without_shrinking_has_residuals_orthogonal_to_what_it_kept() -> None:
    draw = np.random.default_rng(12)
    columns, scores = draw.standard_normal((50, 8)), draw.standard_normal(50)
    fit = fit_query(columns, scores, cutoff=0.0)
    rest = scores - (columns @ fit.weights + fit.bias)
    np.testing.assert_allclose(columns.T @ rest, 0, atol=1e-10)
    assert abs(rest.sum()) < 1e-10


def test_a_fit_equals_ridge_regression_by_the_normal_equations() -> None:
    draw = np.random.default_rng(13)
    columns, scores = draw.standard_normal((40, 6)) + 3.0, draw.standard_normal(40)
    fit = fit_query(columns, scores, cutoff=0.0, ridge=0.2)
    centred = columns - columns.mean(axis=0)
    penalty = 0.2 * np.linalg.svd(centred, compute_uv=False)[0] ** 2
    expected = np.linalg.solve(centred.T @ centred + penalty * np.eye(6), centred.T @ (scores - scores.mean()))
    np.testing.assert_allclose(fit.weights, expected, atol=1e-12)
    np.testing.assert_allclose(fit.bias, scores.mean() - columns.mean(axis=0) @ expected, atol=1e-12)


def test_an_affine_change_of_a_querys_scores_changes_its_estimates_alike() -> None:
    draw = np.random.default_rng(14)
    columns, scores = draw.standard_normal((30, 10)), draw.standard_normal(30)
    plain = fit_query(columns, scores, cutoff=0.03, ridge=0.01).estimate(columns)
    moved = fit_query(columns, 3 * scores - 7, cutoff=0.03, ridge=0.01).estimate(columns)
    np.testing.assert_allclose(moved, 3 * plain - 7, atol=1e-5)


def test_a_guess_that_is_right_is_followed_where_nothing_else_is_known() -> None:
    draw = np.random.default_rng(15)
    columns, guess = draw.standard_normal((200, 20)), draw.standard_normal(200)
    scores = 4 * guess + 1
    fit = fit_query(columns[:5], scores[:5], cutoff=0.0, ridge=0.03, guess=guess[:5])
    np.testing.assert_allclose(fit.estimate(columns, guess), scores, atol=1e-5)


def test_a_guess_that_points_the_wrong_way_is_left_out() -> None:
    draw = np.random.default_rng(16)
    columns, guess = draw.standard_normal((30, 4)), draw.standard_normal(30)
    assert fit_query(columns, -guess, cutoff=0.0, guess=guess).slope == 0.0


def test_equal_items_and_constant_scores_are_no_accident() -> None:
    columns = np.tile(np.array([[1.0, 2.0, 3.0]]), (5, 1))
    fit = fit_query(columns, np.array([1.0, 2.0, 3.0, 4.0, 5.0]), cutoff=0.0)
    np.testing.assert_allclose(fit.estimate(columns), 3.0)
    np.testing.assert_allclose(fit_query(columns[:1], np.array([7.0]), cutoff=0.1).estimate(columns), 7.0)


@pytest.mark.parametrize(
    ("columns", "scores", "message"),
    [
        (np.ones((3, 2)), np.ones(2), "expected \\[n\\] for \\[n, k_q\\]"),
        (np.ones((0, 2)), np.ones(0), "n >= 1"),
        (np.ones((2, 2)), np.array([1.0, np.nan]), "score 1 of 2 is not finite"),
    ],
)
def test_inputs_that_cannot_be_fitted_are_refused(columns: np.ndarray, scores: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fit_query(columns, scores, cutoff=0.1)


def test_diverse_items_span_all_directions_before_they_repeat() -> None:
    axes = np.repeat(np.eye(5) * np.arange(1, 6), 20, axis=0)
    chosen = pick_diverse(np.random.default_rng(17).permutation(axes), 4)
    values = np.random.default_rng(17).permutation(axes)[chosen]
    assert len({int(np.argmax(value)) for value in values}) == 4
    assert len(pick_diverse(axes, 50)) == 4  # five groups have four centred directions


def test_the_shuffled_order_depends_on_keys_and_not_on_positions() -> None:
    keys = np.random.default_rng(18).integers(0, 2**63, 100).astype(np.uint64)
    order = np.random.default_rng(19).permutation(100)
    np.testing.assert_array_equal(keys[order][shuffled(keys[order], 3)], keys[shuffled(keys, 3)])
    assert not np.array_equal(shuffled(keys, 3), shuffled(keys, 4))
    assert sorted(shuffled(keys, 3).tolist()) == list(range(100))
