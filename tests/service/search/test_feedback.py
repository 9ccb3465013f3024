"""Feedback functions: the identities of the papers, hand computations, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core.types import F32, SparseVectors, TokenVectors
from chamfer.service.search.feedback import Mixture, expand_tokens, rm3, rocchio, sparse_rocchio, standout, trust

VOCABULARY = 40
mixtures = st.tuples(st.floats(0, 4), st.floats(0, 4)).map(lambda pair: Mixture(*pair))
counts = st.integers(1, 6)
seeds = st.integers(0, 10_000)


def dense(seed: int, n: int, dim: int = 12) -> F32:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def unit(values: F32) -> F32:
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), dtype=np.float32)


def sparse(*rows: dict[int, float]) -> SparseVectors:
    terms = [term for row in rows for term in sorted(row)]
    weights = [row[term] for row in rows for term in sorted(row)]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return SparseVectors(np.array(weights, np.float32), np.array(terms, np.int32), offsets, VOCABULARY)


def as_dict(vectors: SparseVectors) -> dict[int, float]:
    return dict(zip(vectors.terms.tolist(), vectors.weights.tolist(), strict=True))


sparse_rows = st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(0.125, 8, width=32), min_size=1, max_size=10)
sparse_documents = st.lists(sparse_rows, min_size=1, max_size=5).map(lambda rows: sparse(*rows))


@settings(deadline=None, max_examples=50)
@given(seeds, counts)
def test_alpha_one_and_beta_zero_give_the_query_bit_for_bit(seed: int, k: int) -> None:
    query, documents = dense(seed, 1)[0], dense(seed + 1, k)
    assert rocchio(query, documents, Mixture(1.0, 0.0)).tobytes() == query.tobytes()


@settings(deadline=None, max_examples=50)
@given(sparse_rows, sparse_documents)
def test_alpha_one_and_beta_zero_give_the_sparse_query_bit_for_bit(row: dict[int, float], d: SparseVectors) -> None:
    query = sparse(row)
    for expanded in (
        sparse_rocchio(query, d, Mixture(1.0, 0.0), 10),
        rm3(query, d, np.ones(len(d), np.float32), 1.0, 10),
    ):
        assert (expanded.terms.tolist(), expanded.weights.tolist()) == (query.terms.tolist(), query.weights.tolist())


@settings(deadline=None, max_examples=50)
@given(seeds, counts)
def test_average_is_the_mean_of_the_query_and_the_k_documents(seed: int, k: int) -> None:
    query, documents = dense(seed, 1)[0], dense(seed + 1, k)
    mean = np.concatenate([query[None], documents]).astype(np.float64).mean(axis=0)
    assert rocchio(query, documents, Mixture.average(k), "stored") == pytest.approx(mean, abs=1e-6)
    assert Mixture.average(k) == Mixture(1 / (k + 1), k / (k + 1))


@settings(deadline=None, max_examples=50)
@given(seeds, counts, mixtures)
def test_scores_after_feedback_are_linear_in_those_of_query_and_documents(seed: int, k: int, mixture: Mixture) -> None:
    query, documents, corpus = unit(dense(seed, 1))[0], unit(dense(seed + 1, k)), unit(dense(seed + 2, 20))
    direct = corpus @ rocchio(query, documents, mixture)
    mixed = mixture.alpha * (corpus @ query) + mixture.beta * (corpus @ documents.T).mean(axis=1)
    assert direct == pytest.approx(mixed, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(seeds, counts, st.sampled_from([0.25, 2.0, 8.0]))
def test_multiplying_alpha_and_beta_by_a_power_of_two_keeps_the_order(seed: int, k: int, factor: float) -> None:
    query, documents = dense(seed, 1)[0], dense(seed + 1, k)
    once = rocchio(query, documents, Mixture(0.4, 0.6))
    assert (rocchio(query, documents, Mixture(0.4 * factor, 0.6 * factor)) == once * np.float32(factor)).all()


def test_feedback_documents_equal_to_the_query_keep_its_direction() -> None:
    query = unit(dense(3, 1))[0]
    mixed = rocchio(query, np.tile(query, (4, 1)), Mixture(0.3, 0.9))
    assert mixed == pytest.approx(1.2 * query, rel=1e-5)


def test_without_feedback_documents_the_query_keeps_its_direction() -> None:
    query = dense(3, 1)[0]
    assert rocchio(query, dense(0, 0), Mixture(0.5, 0.5)).tolist() == (query * np.float32(0.5)).tolist()


def test_documents_are_scaled_to_the_querys_length_unless_they_are_taken_as_stored() -> None:
    query, documents = np.array([3.0, 4.0], np.float32), np.array([[0.0, 100.0], [2.0, 0.0]], np.float32)
    assert rocchio(query, documents, Mixture(1.0, 1.0)).tolist() == [3 + 2.5, 4 + 2.5]
    assert rocchio(query, documents, Mixture(1.0, 1.0), "stored").tolist() == [3 + 1, 4 + 50]


def test_sparse_rocchio_by_hand_adds_the_heaviest_terms_and_keeps_the_querys_own() -> None:
    query, documents = sparse({1: 2.0}), sparse({2: 3.0, 5: 1.0}, {2: 1.0, 7: 2.0})
    mixed = sparse_rocchio(query, documents, Mixture(0.5, 1.0), terms=2, length="stored")
    assert as_dict(mixed) == {1: 1.0, 2: 2.0, 7: 1.0}


def test_equal_weights_at_the_limit_keep_the_smaller_term() -> None:
    mixed = sparse_rocchio(sparse({0: 1.0}), sparse({9: 1.0, 3: 1.0}), Mixture(1.0, 1.0), terms=1, length="stored")
    assert as_dict(mixed) == {0: 1.0, 3: 1.0}


@settings(deadline=None, max_examples=50)
@given(sparse_rows, sparse_documents)
def test_sparse_rocchio_equals_the_dense_one_where_no_term_is_left_out(row: dict[int, float], d: SparseVectors) -> None:
    query, mixture = sparse(row), Mixture(0.4, 0.6)
    expanded = sparse_rocchio(query, d, mixture, VOCABULARY)
    assert full(expanded)[0] == pytest.approx(rocchio(full(query)[0], full(d), mixture), rel=1e-5, abs=1e-6)


def test_rm3_by_hand() -> None:
    query, documents = sparse({1: 2.0}), sparse({1: 1.0, 2: 3.0}, {2: 1.0, 3: 1.0})
    # P(t|R) before the cut: 1: 3 * 1/4, 2: 3 * 3/4 + 1 * 1/2, 3: 1 * 1/2; the two largest are 2 and 1
    expanded = rm3(query, documents, np.array([3.0, 1.0], np.float32), original=0.5, terms=2)
    assert as_dict(expanded) == pytest.approx({1: 1.0 + 0.75 / 3.5, 2: 2.75 / 3.5})


@settings(deadline=None, max_examples=50)
@given(sparse_rows, sparse_documents, st.floats(0, 1), st.floats(0, 1))
def test_rm3_keeps_the_querys_mass(row: dict[int, float], d: SparseVectors, original: float, trusted: float) -> None:
    query = sparse(row)
    expanded = rm3(query, d, np.ones(len(d), np.float32), original, 5, trusted)
    assert expanded.weights.sum() == pytest.approx(query.weights.sum(), rel=1e-4)


def test_rm3_weights_documents_equally_if_a_score_is_not_positive() -> None:
    query, documents = sparse({1: 1.0}), sparse({2: 1.0}, {3: 1.0})
    assert as_dict(rm3(query, documents, np.array([5.0, -1.0], np.float32), 0.0, 5)) == pytest.approx({2: 0.5, 3: 0.5})


def test_expansion_vectors_count_beta_times_the_query_and_the_rarest_come_first() -> None:
    query = unit(dense(0, 4))
    documents = TokenVectors(np.eye(12, dtype=np.float32)[:3] * 2, np.array([0, 2, 3], dtype=np.int64))
    expanded = expand_tokens(query, documents, lambda centres: 1 - centres @ np.arange(12.0) / 10, 0.5, 8, 2)
    assert expanded[:4].tobytes() == query.tobytes()
    weights = np.linalg.norm(expanded[4:], axis=1)
    assert weights == pytest.approx([0.5 * 4 * 0.2 / 0.3, 0.5 * 4 * 0.1 / 0.3])
    assert expanded[4:].argmax(axis=1).tolist() == [2, 1]


def test_maxsim_after_expansion_is_maxsim_and_a_weighted_mean_of_the_centres_matches() -> None:
    query, corpus = unit(dense(0, 5)), [unit(dense(n, 7)) for n in range(10, 14)]
    documents = TokenVectors(np.concatenate(corpus[:2]), np.array([0, 7, 14], dtype=np.int64))
    rarity = np.linspace(0.2, 0.8, 14)
    expanded = expand_tokens(query, documents, lambda centres: 1 - rarity[: len(centres)], 0.7, 32, 14)
    for document in corpus:
        maxsim = (query @ document.T).max(axis=1).sum()
        matches = (documents.values @ document.T).max(axis=1)
        assert (expanded @ document.T).max(axis=1).sum() == pytest.approx(
            maxsim + 0.7 * 5 * np.average(matches, weights=rarity), rel=1e-5
        )


@pytest.mark.parametrize("lengths", [[0, 0], []])
def test_documents_without_tokens_expand_nothing(lengths: list[int]) -> None:
    query = dense(0, 3)
    documents = TokenVectors(np.empty((0, 12), np.float32), np.cumsum([0, *lengths]).astype(np.int64))
    assert expand_tokens(query, documents, lambda centres: np.zeros(len(centres)), 0.5, 8, 4) is query


def test_centres_that_every_document_matches_expand_nothing() -> None:
    query, documents = dense(0, 3), TokenVectors(dense(1, 4), np.array([0, 4], dtype=np.int64))
    assert expand_tokens(query, documents, lambda centres: np.ones(len(centres)), 0.5, 8, 4) is query


def test_the_standout_z_score_by_hand() -> None:
    assert standout(np.array([4.0, 2.0, 0.0], np.float32), 1) == pytest.approx((4 - 2) / np.sqrt(8 / 3))


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 1.0, 1.0]])
def test_the_standout_z_score_of_a_short_or_constant_ranking_is_zero(scores: list[float]) -> None:
    assert standout(np.array(scores, np.float32), 1) == 0.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100, width=16), min_size=5, max_size=20), st.sampled_from([0.5, 4.0]))
def test_the_standout_z_score_does_not_depend_on_the_scale_of_scores(scores: list[float], factor: float) -> None:
    falling = np.sort(np.array(scores, np.float32))[::-1]
    assert standout(falling * np.float32(factor) + 1, 3) == pytest.approx(standout(falling, 3), rel=1e-3, abs=1e-3)
    assert standout(falling, 3) <= np.sqrt(len(scores) / 3 - 1) + 1e-9


def test_trust_rises_from_low_to_high() -> None:
    assert [trust(z, 3, 5) for z in (0.0, 3.0, 3.5, 5.0, 9.0)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert [trust(z, 4, 4) for z in (3.9, 4.0)] == [0.0, 1.0]


def full(vectors: SparseVectors) -> F32:
    dense = np.zeros((len(vectors), VOCABULARY), dtype=np.float32)
    owner = np.repeat(np.arange(len(vectors)), np.diff(vectors.offsets))
    dense[owner, vectors.terms] = vectors.weights
    return dense
