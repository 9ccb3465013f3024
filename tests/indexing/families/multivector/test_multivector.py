"""What the contract leaves open for `multivector`: searches by centroids, parameters, codecs, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_encoders import HashEncoder, make_documents

from chamfer.cli.inspect import describe
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import Encoding, Query, TokenVectors, VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.families.multivector import config as multivector_config
from chamfer.indexing.families.multivector.config import MultivectorConfig, most_candidates
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart

N = 300


def clustered(seed: int, lengths: np.ndarray, dim: int = 32) -> TokenVectors:
    """Unit token vectors near 40 directions."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((40, dim))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = directions[rng.integers(0, 40, offsets[-1])] + 0.6 * rng.standard_normal((offsets[-1], dim))
    return TokenVectors((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), offsets)


def encoded(tokens: TokenVectors) -> Encoding:
    n = len(tokens)
    return Encoding(np.zeros(n, np.int32), np.zeros(n, bool), tokens=tokens)


TOKENS = clustered(1, np.random.default_rng(2).integers(0, 30, N))
QUERIES = clustered(3, np.full(12, 9))


def opened(**config: Any) -> Any:
    plain = MultivectorFamily(MultivectorConfig(**config))
    family = plain.with_codec(plain.learn(encoded(TOKENS)))
    return family.open([SegmentPart(family.pack([], encoded(TOKENS)), None, N)])


@pytest.mark.parametrize("storage", ["float16", "int8", "int2"])
def test_a_search_by_centroids_scores_its_candidates_as_the_exact_search_does(storage: str) -> None:
    retriever = opened(storage=storage, centroids=40, candidates=60)
    exact = retriever.with_params(search_mode="exact").search(QUERIES, N)
    by_centroids = retriever.search(QUERIES, 10)
    candidates = retriever.centroid_candidates(QUERIES, 60)
    shares = []
    for q in range(len(QUERIES)):
        rows, scores = exact.of(q)
        among = np.isin(rows, candidates.rows[q])
        np.testing.assert_array_equal(by_centroids.of(q)[0], rows[among][:10])
        np.testing.assert_array_equal(by_centroids.of(q)[1], scores[among][:10])
        shares.append(np.isin(rows[:10], candidates.rows[q]).mean())
    assert np.mean(shares) >= 0.9


def test_as_many_candidates_as_rows_give_the_exact_search() -> None:
    retriever = opened(centroids=40)
    exact = retriever.with_params(search_mode="exact").search(QUERIES, 20)
    np.testing.assert_array_equal(retriever.with_params(candidates=N, margin=1).search(QUERIES, 20).rows, exact.rows)
    np.testing.assert_array_equal(retriever.with_params(candidates=1).search(QUERIES, N).rows[:, :20], exact.rows)


def test_a_margin_scores_what_is_near_the_kth_centroid_score_and_no_fewer_than_k() -> None:
    retriever = opened(storage="float32", centroids=40, candidates=N, margin=0.05)
    hits = retriever.search(QUERIES, 10)
    for q in range(len(QUERIES)):
        rows, scores = retriever.centroid_candidates(QUERIES, N).of(q)
        near = rows[scores >= 0.95 * scores[9]]
        assert 10 <= len(near) < N
        exact = retriever.with_params(search_mode="exact").score(QUERIES.take([q]), near[None])[0]
        np.testing.assert_array_equal(hits.of(q)[0], near[np.lexsort((near, -exact))[:10]])


def test_the_limit_of_candidates_is_that_of_the_live_documents_unless_a_number_is_given() -> None:
    assert [most_candidates(n) for n in (0, 20_000, 160_000, 540_000)] == [4000, 4000, 16_000, 36_000]
    parts = [part_of(n) for n in (60_000, 100_000)]
    half = SegmentPart(parts[0].arrays, np.arange(60_000) < 1, 60_000)
    family = MultivectorFamily(MultivectorConfig(centroids=1)).with_codec({"centroids": np.ones((1, 4), np.float32)})
    whole, holed = family.open(parts), family.open([half, part_of(19_999)])
    assert whole.params == {"search_mode": "centroids", "candidates": 16_000, "margin": 0.13}
    assert holed.params["candidates"] == 4000  # 20,000 are live of 79,999
    given = whole.with_params(candidates=1700)
    assert given.params["candidates"] == given.with_params(margin=0.2).params["candidates"] == 1700
    assert whole.with_params(margin=0.2).params["candidates"] == 16_000
    assert whole.with_params(search_mode="exact").params == {"search_mode": "exact"}
    read = make_family("multivector", {"centroids": 1, "candidates": 50}).config.candidates
    assert (read, make_family("multivector", {"candidates": None}).config.candidates) == (50, None)
    with pytest.raises(InvalidInput, match="candidates is 'many', expected int"):
        make_family("multivector", {"candidates": "many"})


def part_of(n: int) -> SegmentPart:
    """n documents without a token."""
    arrays = {
        "values": np.empty((0, 4), np.float16),
        "offsets": np.zeros(n + 1, np.int64),
        "centroid_ids": np.empty(0, np.uint16),
        "largest_norm": np.zeros(1),
    }
    return SegmentPart(arrays, None, n)


def test_a_search_respects_the_limit_for_the_size_of_the_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multivector_config, "LEAST_CANDIDATES", 20)
    monkeypatch.setattr(multivector_config, "FEW_DOCUMENTS", 37)
    retriever = opened(centroids=40, margin=1)
    assert retriever.params["candidates"] == 81  # 20 x (300 / 37)^(2/3)
    hits = retriever.search(QUERIES, 40)
    np.testing.assert_array_equal(hits.rows, retriever.with_params(candidates=81).search(QUERIES, 40).rows)
    for most, held in ((81, True), (60, False)):
        named = retriever.centroid_candidates(QUERIES, most).rows
        assert all(np.isin(*rows).all() for rows in zip(hits.rows, named, strict=True)) is held


def test_centroid_candidates_keep_to_the_filter() -> None:
    allowed = np.random.default_rng(5).random(N) < 0.3
    retriever = opened(centroids=40, candidates=20)
    for hits in (retriever.search(QUERIES, 20, allowed), retriever.centroid_candidates(QUERIES, 20, allowed)):
        assert hits.depth == 20
        assert allowed[hits.rows].all()


@pytest.mark.parametrize(("storage", "size"), [("float16", 64), ("int8", 34), ("int4", 18), ("int3", 14), ("int2", 10)])
def test_bytes_of_a_token(storage: str, size: int) -> None:
    plain = MultivectorFamily(MultivectorConfig(storage=storage))
    arrays = plain.with_codec(plain.learn(encoded(TOKENS))).pack([], encoded(TOKENS))
    per_token = sum(array.nbytes for name, array in arrays.items() if name not in ("offsets", "largest_norm"))
    assert per_token == size * len(TOKENS.values)


@pytest.mark.parametrize(("storage", "floor"), [("int8", 0.97), ("int4", 0.85), ("int3", 0.75), ("int2", 0.6)])
def test_codes_keep_most_of_the_exact_ranking(storage: str, floor: float) -> None:
    exact = opened(storage="float32").search(QUERIES, 10)
    hits = opened(storage=storage, centroids=40, candidates=N).search(QUERIES, 10)
    kept = np.mean([np.isin(a, b).mean() for a, b in zip(exact.rows, hits.rows, strict=True)])
    assert kept >= floor


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidInput, match="expected 0"):
        MultivectorConfig(centroids=-1)
    with pytest.raises(InvalidInput, match="at least 1"):
        MultivectorConfig(candidates=0)
    with pytest.raises(InvalidInput, match=r"margin is 1\.5, expected 0 to 1"):
        opened(centroids=40).with_params(margin=1.5)
    with pytest.raises(InvalidInput, match=r"multivector\.centroids"):
        opened().with_params(search_mode="centroids")
    with pytest.raises(InvalidInput, match="no centroids"):
        opened().centroid_candidates(QUERIES, 3)
    with pytest.raises(InvalidInput, match="9 dimensions"):
        opened(centroids=40, candidates=5).search(clustered(1, np.array([3]), 9), 2)
    with pytest.raises(InvalidInput, match="no codec yet"):
        MultivectorFamily(MultivectorConfig(storage="int4")).pack([], encoded(TOKENS))
    with pytest.raises(Incompatible, match="lacks"):
        MultivectorFamily(MultivectorConfig(storage="int4")).with_codec({"centroids": np.zeros((1, 3), np.float32)})
    with pytest.raises(Incompatible, match="no use"):
        MultivectorFamily(MultivectorConfig()).with_codec({"centroids": np.zeros((1, 3), np.float32)})


def test_a_build_learns_codes_keeps_them_and_searches_by_them(tmp_path: Path) -> None:
    encoder, documents = HashEncoder(dim=16), make_documents(80, seed=4)
    parameters = {"multivector": {"storage": "int4", "centroids": 30, "candidates": 20}}
    config = BuildConfig(channels=("multivector",), parameters=parameters, block_documents=20, segment_documents=40)
    build(documents, tmp_path / "c", encoder=encoder, config=config)
    with Collection.open(tmp_path / "c", verify=True) as collection:
        assert len(collection.segments) == 2
        channel = collection.channels["multivector"]
        queries = encoder.encode_queries([Query("q", documents[50].content)], [VectorKind.TOKENS]).tokens
        hits = channel.retriever.search(queries, 5)
        assert collection.doc_ids(hits.rows[0][:1]) == [documents[50].doc_id]
        assert collection.bytes_by_part()["multivector"] > 0
        assert describe(collection)["searches"]["multivector"]["candidates"] == 20
