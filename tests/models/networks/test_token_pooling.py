"""Pooling of token vectors: the properties stated in the CRISP paper, on random and degenerate texts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_encoders import HashEncoder, make_documents

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Query, TokenVectors, VectorKind
from chamfer.indexing.kernels.maxsim import maxsim_plain
from chamfer.models.encoders.pooled import PooledEncoder
from chamfer.models.networks.token_pooling import Pooling, assign, means, parse_pooling, pool, pool_one


def points(seed: int, n: int, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def spread(tokens: np.ndarray, labels: np.ndarray) -> float:
    """Within-cluster sum of squares."""
    return float(sum(((tokens[labels == c] - tokens[labels == c].mean(axis=0)) ** 2).sum() for c in np.unique(labels)))


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12))
def test_labels_are_a_local_optimum_with_every_cluster_used(seed: int, n: int, k: int) -> None:
    tokens = points(seed, n)
    labels = assign(tokens, k)
    m = int(labels.max()) + 1
    assert m <= min(k, n)
    assert set(labels) == set(range(m))
    centres = means(tokens, labels)
    distances = ((tokens[:, None] - centres) ** 2).sum(axis=2)
    distance_to_mean = distances[np.arange(n), labels]
    # No token is nearer to another mean: 20 iterations suffice here.
    assert (distance_to_mean <= distances.min(axis=1) + 1e-4).all()


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 9))
def test_the_order_of_tokens_does_not_matter(seed: int, n: int, k: int) -> None:
    tokens = points(seed, n)
    order = np.random.default_rng(seed + 1).permutation(n)
    labels, shuffled = assign(tokens, k), assign(tokens[order], k)
    together = labels[order][:, None] == labels[order][None, :]
    np.testing.assert_array_equal(together, shuffled[:, None] == shuffled[None, :])


def test_as_many_clusters_as_distinct_tokens_are_the_tokens() -> None:
    distinct = points(1, 7)
    tokens = np.concatenate([distinct, distinct[:3], distinct[:1]])
    labels = assign(tokens, 9)
    assert labels.max() == 6
    np.testing.assert_allclose(means(tokens, labels)[labels], tokens, atol=1e-6)
    query = points(2, 4)
    offsets = np.array([0, 7], dtype=np.int64)
    pooled = np.ascontiguousarray(means(tokens, labels))
    first = np.array([0], dtype=np.int64)
    whole = np.array([0, len(tokens)], dtype=np.int64)
    np.testing.assert_allclose(
        maxsim_plain(query, pooled, offsets, first), maxsim_plain(query, tokens, whole, first), rtol=1e-5
    )


def test_one_cluster_is_the_mean() -> None:
    tokens = points(3, 11)
    np.testing.assert_allclose(pool_one(tokens, Pooling("cluster", 1)), tokens.mean(axis=0)[None], atol=1e-6)


def test_more_clusters_lower_the_spread_and_beat_fixed_spacing() -> None:
    tokens = np.concatenate([points(seed, 1) + 0.1 * points(seed + 100, 9) for seed in range(8)])
    spreads = [spread(tokens, assign(tokens, k)) for k in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in itertools.pairwise(spreads))
    labels_by_cloud = assign(tokens, 8).reshape(8, 9)
    assert (labels_by_cloud == labels_by_cloud[:, :1]).all()  # the eight clouds


def joined_by_definition(tokens: np.ndarray, k: int) -> set[frozenset[int]]:
    """Ward's method by its definition: of all pairs, merge the one whose union adds least variance."""
    sets = [frozenset([i]) for i in range(len(tokens))]

    def cost(members: frozenset[int]) -> float:
        return spread(tokens[sorted(members)], np.zeros(len(members)))

    while len(sets) > k:
        a, b = min(
            itertools.combinations(sets, 2), key=lambda pair: cost(pair[0] | pair[1]) - cost(pair[0]) - cost(pair[1])
        )
        sets = [each for each in sets if each not in (a, b)] + [a | b]
    return set(sets)


@given(st.integers(0, 999), st.integers(1, 14), st.integers(1, 6))
def test_wards_clusters_are_those_of_the_definition(seed: int, n: int, k: int) -> None:
    tokens = points(seed, n)
    labels = assign(tokens, k, ward=True)
    clusters = {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}
    assert clusters == joined_by_definition(tokens, k)


def test_equal_tokens_share_a_ward_cluster_even_where_k_would_allow_more() -> None:
    distinct = points(1, 7)
    labels = assign(np.concatenate([distinct, distinct[:3]]), 9, ward=True)
    np.testing.assert_array_equal(labels[7:], labels[:3])
    assert labels.max() == 6


@pytest.mark.parametrize("ward", [False, True])
@given(st.integers(0, 999), st.lists(st.integers(1, 4), min_size=1, max_size=14), st.integers(1, 6))
def test_an_integer_weight_equals_that_many_equal_tokens(ward: bool, seed: int, weights: list[int], k: int) -> None:
    tokens, counts = points(seed, len(weights)), np.array(weights, dtype=np.float32)
    repeated, last = np.repeat(tokens, weights, axis=0), np.cumsum(weights) - 1
    labels, among = assign(tokens, k, ward=ward, weights=counts), assign(repeated, k, ward=ward)
    together = labels[:, None] == labels[None, :]
    np.testing.assert_array_equal(together, among[last][:, None] == among[last][None, :])
    for normalised in (False, True):
        weighted = means(tokens, labels, normalised=normalised, weights=counts)
        np.testing.assert_allclose(
            weighted[labels], means(repeated, among, normalised=normalised)[among[last]], atol=1e-5
        )


def test_a_text_is_pooled_by_its_own_weights_and_equal_ones_change_nothing() -> None:
    tokens, offsets = points(7, 20), np.array([0, 8, 20], dtype=np.int64)
    weights = np.linspace(0.01, 1, 20, dtype=np.float32)
    for name in ("c0x3", "w0x3", "c0x3n", "w0x50p"):
        rules = parse_pooling(name)
        pooled = pool(TokenVectors(tokens, offsets, weights), rules.document, normalised=rules.normalised)
        assert pooled.weights is None
        second = pool_one(tokens[8:], rules.document, normalised=rules.normalised, weights=weights[8:])
        np.testing.assert_array_equal(pooled.values[pooled.offsets[1] :], second)
        equal = pool(TokenVectors(tokens, offsets, np.full(20, 0.3, np.float32)), rules.document, normalised=True)
        plain = pool(TokenVectors(tokens, offsets), rules.document, normalised=True)
        np.testing.assert_allclose(equal.values, plain.values, atol=1e-5)
        assert not np.allclose(pooled.values, pool(TokenVectors(tokens, offsets), rules.document).values, atol=1e-3)
    kept = parse_pooling("k2")
    np.testing.assert_array_equal(pool(TokenVectors(tokens, offsets, weights), kept.document).values[:4], tokens[:8:2])


def test_weights_go_with_their_rows_and_wrong_ones_are_refused() -> None:
    offsets, weights = np.array([0, 2, 2, 5], dtype=np.int64), np.arange(1, 6, dtype=np.float32)
    tokens = TokenVectors(points(8, 5), offsets, weights)
    taken = tokens.take([2, 1, 0]).weights
    assert taken is not None
    assert taken.tolist() == [3, 4, 5, 1, 2]
    joined = TokenVectors.concatenate([tokens, tokens.take([0])]).weights
    assert joined is not None
    assert joined.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert TokenVectors.concatenate([tokens, TokenVectors(tokens.values, offsets)]).weights is None
    for wrong in (weights[:4], weights - 1, weights * np.nan, weights.astype(np.float64)):
        with pytest.raises(InvalidInput, match="token weight"):
            TokenVectors(tokens.values, offsets, wrong)


def test_means_of_ward_are_unit_vectors_and_those_of_crisp_are_not() -> None:
    values = points(6, 40)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    tokens = TokenVectors(values, np.array([0, 40], dtype=np.int64))
    lengths = {}
    for name in ("c8x32", "c8x32n", "w8x32"):
        rules = parse_pooling(name)
        pooled = pool(tokens, rules.document, normalised=rules.normalised).values
        lengths[name] = np.linalg.norm(pooled, axis=1)
    assert np.ptp(lengths["c8x32"]) > 0.01
    np.testing.assert_allclose(lengths["c8x32n"], 1, atol=1e-6)
    np.testing.assert_allclose(lengths["w8x32"], 1, atol=1e-6)


def test_normalised_means_of_weighted_tokens_keep_the_mean_weight_of_their_cluster() -> None:
    tokens = np.array([[2, 0], [0, 4], [0, 3.9], [0.1, 0]], dtype=np.float32)
    labels = np.array([0, 1, 1, 0])
    np.testing.assert_allclose(means(tokens, labels, normalised=True), [[1.05, 0], [0, 3.95]], rtol=1e-6)
    turned = means(tokens, np.array([0, 0, 1, 1]), normalised=True)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), [3, 2], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["c4x8", "c8x32", "c25", "c50", "k2", "k4", "tail4x8", "c0x3", "c25n", "w4x8", "w25", "w0x90p"]
)
def test_no_rule_gives_more_vectors_than_tokens_nor_none(name: str) -> None:
    rules = parse_pooling(name)
    for n in (0, 1, 2, 3, 7, 60):
        for rule in (rules.query, rules.document):
            pooled = pool_one(points(n, n), rule)
            assert (1 if n else 0) <= len(pooled) <= n


def test_rules_do_what_their_names_say() -> None:
    tokens = points(4, 10)
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("k4").document), tokens[[0, 4, 8]])
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("k1").document), tokens)
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("tail4x8").document), tokens[2:])
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("tail4x8").query), tokens[6:])
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("c0x3").query), tokens)
    assert len(pool_one(tokens, parse_pooling("c0x3").document)) == 3
    assert len(pool_one(tokens, parse_pooling("c25").document)) == 2  # floor of a quarter
    assert len(pool_one(tokens[:3], parse_pooling("c25").document)) == 1
    assert len(pool_one(tokens, parse_pooling("w0x90p").document)) == 9
    np.testing.assert_array_equal(pool_one(tokens, parse_pooling("w0x90p").query), tokens)


def test_a_text_pooled_among_others_has_the_bits_of_the_text_alone() -> None:
    sets = [points(i, n) for i, n in enumerate([5, 0, 40, 1, 33])]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
    rule = Pooling("cluster", 8)
    together = pool(TokenVectors(np.concatenate(sets), offsets), rule)
    for i, text_vectors in enumerate(sets):
        part = together.values[together.offsets[i] : together.offsets[i + 1]]
        np.testing.assert_array_equal(part, pool_one(text_vectors, rule))


@pytest.mark.parametrize("name", ["c", "c4x", "x8", "k0", "c101", "c4x8x2", "mean", "w0x101p", "w0x0p", "tail8x8p"])
def test_an_unknown_pooling_is_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(InvalidInput, match="expected cQxD"):
        parse_pooling(name)


def test_a_pooled_encoder_keeps_dense_and_changes_its_fingerprint() -> None:
    inner = HashEncoder()
    encoder = PooledEncoder(inner, parse_pooling("c2x4n"))
    documents = make_documents(20, seed=3)
    kinds = [VectorKind.DENSE, VectorKind.TOKENS]
    plain, pooled = inner.encode_documents(documents, kinds), encoder.encode_documents(documents, kinds)
    assert plain.tokens is not None
    assert pooled.tokens is not None
    assert plain.dense is not None
    assert pooled.dense is not None
    np.testing.assert_array_equal(plain.dense.values, pooled.dense.values)
    assert (np.diff(pooled.tokens.offsets) <= np.minimum(4, np.diff(plain.tokens.offsets))).all()
    np.testing.assert_allclose(np.linalg.norm(pooled.tokens.values, axis=1), 1, atol=1e-5)
    query_tokens = encoder.encode_queries([Query("q", "w1 w2 w3 w4 w5")], [VectorKind.TOKENS]).tokens
    assert query_tokens is not None
    assert len(query_tokens.values) == 2
    assert encoder.spec.name == "hash+c2x4n"
    assert encoder.spec.fingerprint != inner.spec.fingerprint
