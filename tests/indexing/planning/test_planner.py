"""Measuring first stages over a small encoded sample."""

from __future__ import annotations

import numpy as np
import pytest
from support_encoders import HashEncoder, make_documents

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, TokenVectors, VectorKind
from chamfer.indexing.planning.candidate_recall import recall
from chamfer.indexing.planning.planner import (
    Sample,
    Source,
    candidates_at,
    final_order,
    in_form,
    make_sample,
    measure,
    measure_exact,
    sources,
    union,
)

ENCODER = HashEncoder(dim=12)
KINDS = (VectorKind.DENSE, VectorKind.TOKENS)
DOCUMENTS = [d for d in make_documents(260, seed=4) if d.content]
QUERIES = [Query(f"q{i}", f"w{i} w{i + 1} w{i % 3}") for i in range(12)]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample(
        DOCUMENTS, QUERIES, ENCODER.encode_documents(DOCUMENTS, KINDS), ENCODER.encode_queries(QUERIES, KINDS)
    )


def every_second(tokens: TokenVectors, name: str) -> TokenVectors:
    assert name == "k2"
    matrices = [tokens.values[a:b:2] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])]).astype(np.int64)
    return TokenVectors(np.ascontiguousarray(np.concatenate(matrices)), offsets)


def maxsim(sample: Sample) -> np.ndarray:
    queries, tokens = sample.encoded_queries.tokens, sample.encoding.tokens
    scores = np.zeros((len(QUERIES), len(DOCUMENTS)))
    for q in range(len(QUERIES)):
        query = queries.values[queries.offsets[q] : queries.offsets[q + 1]]
        for d in range(len(DOCUMENTS)):
            document = tokens.values[tokens.offsets[d] : tokens.offsets[d + 1]]
            scores[q, d] = (query @ document.T).max(axis=1).sum()
    return scores


def test_the_exact_ranking_is_that_of_maxsim_from_the_definition(sample: Sample) -> None:
    scores = maxsim(sample)
    for q in range(len(QUERIES)):
        rows = sample.exact.of(q)[0]
        assert sorted(rows) == list(range(len(DOCUMENTS)))
        assert np.all(np.diff(scores[q, rows]) < 0.01)


def test_exact_maxsim_has_full_recall(sample: Sample) -> None:
    assert recall(measure_exact(sample).ranks_10, 10) == 1.0


def test_a_source_is_measured_by_what_it_returns(sample: Sample) -> None:
    measured = measure(Source("dense", "dense"), sample, every_second)
    dense = sample.encoded_queries.dense.values @ sample.encoding.dense.values.T
    expected = []
    for q in range(len(QUERIES)):
        first = np.argsort(-dense[q], kind="stable")[:50]
        expected.append(np.isin(sample.exact.of(q)[0][:10], first).mean())
    assert recall(measured.ranks_10, 50) == pytest.approx(np.mean(expected))
    assert measured.costs.bytes_per_document == pytest.approx(12 * 4, abs=0.1)  # and the largest norm
    assert 0 <= measured.exponent <= 1


def test_a_pooled_source_is_smaller_and_the_lexical_one_needs_no_vectors(sample: Sample) -> None:
    pooled = measure(Source("multivector k2", "multivector", pooling="k2"), sample, every_second)
    assert pooled.direct
    assert pooled.costs.bytes_per_document < 0.8 * sample.token_bytes
    lexical = measure(Source("lexical", "lexical"), sample, every_second)
    assert 0 < recall(lexical.ranks_10, 100) <= 1


def test_centroids_propose_candidates_and_codes_rank_them(sample: Sample) -> None:
    by_centroids = measure(Source("centroids 64", "multivector", {"centroids": 64}), sample, every_second)
    assert not by_centroids.direct
    n_tokens = len(sample.encoding.tokens.values)
    assert by_centroids.costs.bytes_per_document == pytest.approx(sample.token_bytes + 2 * n_tokens / len(DOCUMENTS))
    form = measure(Source("multivector int2", "multivector", {"storage": "int2"}), sample, every_second)
    coded = in_form(by_centroids, form, sample)
    assert coded.costs.bytes_per_document < by_centroids.costs.bytes_per_document / 2
    assert coded.sources[0].parameters == {"centroids": 64, "storage": "int2"}
    kept = [np.isin(sample.exact.of(q)[0][:10], form.rankings[0].of(q)[0][:10]).mean() for q in range(len(QUERIES))]
    assert coded.kept == pytest.approx(np.mean(kept))
    order = final_order(coded, sample, 0, 30)
    assert set(order.tolist()) == set(by_centroids.rankings[0].of(0)[0][:30].tolist())
    positions = [form.rankings[0].of(0)[0].tolist().index(row) for row in order]
    assert positions == sorted(positions)


def test_a_union_takes_equal_shares_and_adds_costs(sample: Sample) -> None:
    parts = [measure(Source(name, name), sample, every_second) for name in ("dense", "lexical")]
    both = union(parts, sample)
    for q in range(len(QUERIES)):
        wanted = {int(row) for part in parts for row in part.rankings[0].of(q)[0][:20]}
        assert set(candidates_at(both, q, 40).tolist()) == wanted
        order = final_order(both, sample, q, 40)
        assert set(order.tolist()) == wanted
        assert np.all(np.diff([list(sample.exact.of(q)[0]).index(row) for row in order]) > 0)
    held = np.mean([np.isin(sample.exact.of(q)[0][:10], candidates_at(both, q, 40)).mean() for q in range(12)])
    assert recall(both.ranks_10, 40) == pytest.approx(held)
    assert both.costs.bytes_per_document == sum(part.costs.bytes_per_document for part in parts)


def test_what_is_measured_follows_from_the_kinds_of_the_encoder() -> None:
    names = {source.name for source in sources(KINDS)}
    assert {
        "dense",
        "lexical",
        "multivector w0x32",
        "multivector int4",
        "centroids 4096",
        "fde 10240 centred",
        "fde 2560 unfilled",
        "lemur 1280",
    } <= names
    assert "dense" not in {source.name for source in sources([VectorKind.TOKENS])}


def test_no_documents_no_queries_and_no_token_vectors_are_refused() -> None:
    encoding = ENCODER.encode_documents(DOCUMENTS[:3], KINDS)
    queries = ENCODER.encode_queries(QUERIES, KINDS)
    with pytest.raises(InvalidInput, match="0 documents"):
        make_sample([], QUERIES, ENCODER.encode_documents([], KINDS), queries)
    with pytest.raises(InvalidInput, match="0 queries"):
        make_sample(DOCUMENTS[:3], [], encoding, ENCODER.encode_queries([], KINDS))
    dense = ENCODER.encode_documents([Document("a", "b")], [VectorKind.DENSE])
    with pytest.raises(InvalidInput, match="--encoder"):
        make_sample([Document("a", "b")], QUERIES, dense, queries)
