"""Each negative filter, checked by hand on a few candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document
from chamfer.mining import negative_filters
from chamfer.mining.config import MiningConfig
from chamfer.mining.fates import fates
from chamfer.mining.text_overlap import TermCache, jaccard, overlap, shingles

NAN = float("nan")


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_ranks_outside_the_window_are_dropped() -> None:
    assert negative_filters.outside_ranks(f32(1, 49, 50, 100, 101, NAN), 50, 100).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_the_margin_drops_what_is_above_positive_minus_beta() -> None:
    assert negative_filters.within_margin(f32(0.75, 0.5, 0.25, NAN), 0.75, 0.25).tolist() == [True, False, False, True]
    assert negative_filters.within_margin(f32(0.76, 0.75), 0.75, 0.0).tolist() == [True, False]


def test_the_share_bound_is_below_the_positive_for_negative_scores_too() -> None:
    assert negative_filters.within_share(f32(7.7, 7.5, 9.0), 8.0, 0.05).tolist() == [True, False, True]  # bound 7.6
    assert negative_filters.within_share(f32(-2.0, -3.5, -1.0), -2.0, 0.5).tolist() == [True, False, True]  # bound -3


def test_without_a_scored_positive_the_margin_drops_every_candidate() -> None:
    assert negative_filters.within_margin(f32(0.1, 0.9), NAN, 0.1).all()


def test_a_candidate_without_a_similarity_is_not_a_duplicate() -> None:
    assert negative_filters.near_duplicates(f32(0.95, 0.94, NAN), 0.95).tolist() == [True, False, False]


def test_consistency_needs_one_positive_among_the_first_candidates() -> None:
    assert negative_filters.consistent([NAN, 50.0], 50)
    assert not negative_filters.consistent([51.0], 50)
    assert not negative_filters.consistent([NAN], 50)


def test_the_cyclic_stride_starts_again_at_the_next_index() -> None:
    assert negative_filters.cyclic(7, 3, 7).tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert negative_filters.cyclic(50, 5, 4).tolist() == [0, 5, 10, 15]
    assert negative_filters.cyclic(4, 1, 2).tolist() == [0, 1]


@given(n=st.integers(0, 40), stride=st.integers(1, 60), keep=st.integers(0, 50))
def test_a_stride_visits_every_index_once(n: int, stride: int, keep: int) -> None:
    indices = negative_filters.cyclic(n, stride, keep).tolist()
    assert len(indices) == min(n, keep)
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(n))
    assert sorted(negative_filters.cyclic(n, stride, n).tolist()) == list(range(n))


def test_a_stride_of_zero_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="stride is 0"):
        negative_filters.cyclic(3, 0, 3)


def test_clusters_are_ranked_by_similarity_to_the_query() -> None:
    centres = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    vectors = np.array([[0.9, 0.1], [0.2, 0.8], [-0.7, -0.1]], dtype=np.float32)
    clusters, ranks = negative_filters.nearest_clusters(vectors, np.array([[0.1, 0.9]], dtype=np.float32), centres)
    assert clusters.tolist() == [0, 1, 2]
    assert ranks.tolist() == [[2, 1, 3]]
    assert negative_filters.outside_clusters(ranks[0, clusters].astype(np.float32), 2).tolist() == [False, False, True]


def test_the_fate_is_the_first_filter_that_drops_and_positives_stay_positive() -> None:
    positive = np.array([True, False, False, False, False])
    dropped = [
        ("rank", np.array([True, True, False, False, False])),
        ("judge", np.array([True, True, True, False, False])),
    ]
    assert fates(5, positive, dropped, 1, 1) == ["positive", "rank", "judge", "kept", "not_drawn"]


def test_jaccard_of_shingles_computed_by_hand() -> None:
    a = shingles(["the", "fox", "lost", "his", "tail"])  # 3 triples
    b = shingles(["the", "fox", "lost", "his", "hat"])  # 3 triples, 2 of them the same
    assert len(a) == 3
    assert jaccard(a, b) == pytest.approx(2 / 4)
    assert jaccard(a, a) == 1.0
    assert jaccard(shingles([]), shingles([])) == 0.0
    assert shingles(["one", "two"]) == {("one", "two")}


def test_overlap_is_the_share_of_the_querys_terms() -> None:
    assert overlap(frozenset("abcd"), frozenset("bdx")) == 0.5
    assert overlap(frozenset(), frozenset("a")) == 0.0


def test_a_full_term_cache_is_emptied_and_returns_the_same_terms() -> None:
    small, large = TermCache(max_documents=2), TermCache()
    documents = [Document(f"d{n}", f"fox number{n} on the hill") for n in range(5)] * 2
    assert [small.terms(d) for d in documents] == [large.terms(d) for d in documents]
    assert [small.shingles(d) for d in documents] == [large.shingles(d) for d in documents]


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"first_rank": 60, "last_rank": 50}, {"last_rank": 101}, {"keep": 0}])
def test_an_invalid_configuration_is_rejected(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        MiningConfig(**wrong)  # type: ignore[arg-type]


def test_outranking_candidates_rank_above_every_retrieved_positive() -> None:
    ranks = np.array([1, 2, 3, np.nan], dtype=np.float32)
    assert negative_filters.outranking(ranks, ranks[[2]]).tolist() == [True, True, False, False]
    assert negative_filters.outranking(ranks, ranks[[1, 3]]).tolist() == [True, False, False, False]
    assert negative_filters.outranking(ranks, ranks[[3]]).tolist() == [True, True, True, False]
