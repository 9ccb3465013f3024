"""Family `fde`: storages, indexes, filters, budgets, and what it refuses."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import Document, Encoding, TokenVectors
from chamfer.indexing.families.fde.encoder import FdeConfig
from chamfer.indexing.families.fde.family import FdeFamily
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.kernels.product import quantise, reconstruct, scan_codes, train_codebooks
from chamfer.indexing.rows.segment_part import SegmentPart

DIM = 32


def encoding(seed: int, n: int, dim: int = DIM, empty: tuple[int, ...] = ()) -> Encoding:
    """n texts of 3 to 11 unit vectors, a few directions shared by many."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, n)
    lengths[list(empty)] = 0
    topics = np.random.default_rng(9).standard_normal((40, dim))
    values = topics[rng.integers(0, 40, lengths.sum())] + 0.8 * rng.standard_normal((lengths.sum(), dim))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Encoding(lengths.astype(np.int32), np.zeros(n, dtype=bool), tokens=TokenVectors(values, offsets))


def built(encoded: Encoding, learnt_from: Encoding | None = None, **parameters: Any) -> tuple[FdeFamily, SegmentPart]:
    family: Any = make_family("fde", {"repetitions": 5, "k_sim": 3, "d_proj": 8, **parameters})
    family = family.with_codec(family.learn(learnt_from or encoded))
    documents = [Document(str(i)) for i in range(len(encoded))]
    return family, SegmentPart(family.pack(documents, encoded), None, len(encoded))


def plain(arrays: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.concatenate(list(array.chunks)) if isinstance(array, ArrayStream) else array
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def many() -> Encoding:
    return encoding(1, 1500)


@pytest.fixture(scope="module")
def queries() -> TokenVectors:
    tokens = encoding(2, 20).tokens
    assert tokens is not None
    return tokens


@pytest.mark.filterwarnings("ignore:fde.search ivf")
@pytest.mark.parametrize(("search", "floor"), [("hnsw", 0.95), ("ivf", 0.7)])
def test_an_index_finds_most_of_what_a_scan_finds_with_its_scores(
    many: Encoding, queries: TokenVectors, search: str, floor: float
) -> None:
    family, part = built(many)
    flat = family.open([part]).search(queries, 10)
    indexed_family, indexed = built(many, search=search)
    retriever = indexed_family.open([indexed])
    hits = retriever.search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(flat.rows, hits.rows, strict=True)])
    assert recall >= floor
    scores = family.open([part]).search(queries, 1500)
    for q in range(len(queries)):
        scan_scores = dict(zip(scores.rows[q], scores.scores[q], strict=True))
        assert [scan_scores[row] for row in hits.rows[q]] == list(hits.scores[q])
    wider = retriever.with_params(**{"ef_search": 1500} if search == "hnsw" else {"n_probe": 1500})
    again = wider.search(queries, 10)
    assert np.mean(again.rows == flat.rows) >= max(recall, 0.99)
    with pytest.raises(InvalidInput, match="no parameters"):
        retriever.with_params(nlist=3)


@pytest.mark.parametrize("share", [0.5, 0.01, 0.002])
def test_a_filter_over_a_graph_index_loses_no_hits(many: Encoding, queries: TokenVectors, share: float) -> None:
    family, part = built(many, search="hnsw")
    allowed = np.random.default_rng(3).random(1500) < share
    hits = family.open([part]).search(queries, 10, allowed)
    for q in range(len(queries)):
        rows = hits.of(q)[0]
        assert len(rows) == min(10, np.count_nonzero(allowed))
        assert allowed[rows].all()


def test_merged_segments_are_indexed_again_without_the_deleted(many: Encoding, queries: TokenVectors) -> None:
    family, part = built(many, search="hnsw")
    live = np.random.default_rng(4).random(1500) < 0.8
    merged = plain(family.merge([SegmentPart(part.arrays, live, 1500)]))
    assert merged["index"].dtype == np.uint8
    n_live = int(np.count_nonzero(live))
    retriever = family.open([SegmentPart(merged, None, n_live)])
    holed = family.open([SegmentPart(part.arrays, live, 1500)])
    expected, hits = holed.search(queries, 10), retriever.search(queries, 10)
    assert live[expected.rows].all()
    assert np.mean(np.flatnonzero(live)[hits.rows] == expected.rows) >= 0.9
    again = plain(family.merge([SegmentPart(part.arrays, live, 1500)]))
    assert again["index"].tobytes() == merged["index"].tobytes()


@pytest.mark.parametrize(("storage", "n_bytes"), [("float16", 640), ("int8", 324), ("pq8", 40), ("rabitq", 48)])
def test_storages_keep_the_order_and_the_stated_bytes(
    many: Encoding, queries: TokenVectors, storage: str, n_bytes: int
) -> None:
    family, part = built(many, storage=storage)
    retriever = family.open([part])
    assert retriever.bytes_per_document == n_bytes
    exact_family, exact = built(many, storage="float16")
    wanted = exact_family.open([exact]).search(queries, 10).rows
    hits = retriever.search(queries, 100).rows
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(wanted, hits, strict=True)])
    assert recall >= {"float16": 1, "int8": 1, "pq8": 0.9, "rabitq": 0.75}[storage]


def test_product_codes_are_exact_for_few_distinct_groups_and_score_their_reconstruction() -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((200, 48)).astype(np.float32)
    codebooks = train_codebooks(values, 6, seed=1)
    np.testing.assert_array_equal(reconstruct(quantise(values, codebooks), codebooks), values)
    shared = train_codebooks(values, 2, seed=1)
    codes = quantise(values, shared)
    distances = np.square(values.reshape(200, 6, 1, 8) - shared.repeat(3, axis=0)[None]).sum(axis=3)
    np.testing.assert_array_equal(codes, distances.argmin(axis=2))
    query = rng.standard_normal(48).astype(np.float32)
    np.testing.assert_allclose(
        scan_codes(codes, shared, query), reconstruct(codes, shared) @ query, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("storage", ["float16", "int8", "pq8", "rabitq"])
def test_empty_documents_and_a_k_beyond_all_rows_are_answered(storage: str, queries: TokenVectors) -> None:
    encoded = encoding(6, 12, empty=(0, 5, 11))
    family, part = built(encoded, storage=storage)
    hits = family.open([part]).search(queries, 50)
    assert (np.sort(hits.rows, axis=1) == np.arange(12)).all()
    assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_scan_on_a_device_gives_the_same_rows(
    many: Encoding, queries: TokenVectors, storage: str, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    family, part = built(many, storage=storage)
    retriever = family.open([part])
    allowed = np.random.default_rng(8).random(1500) < 0.5
    expected = retriever.search(queries, 20, allowed)
    hits = retriever.with_params(device=device).search(queries, 20, allowed)
    assert np.mean(hits.rows == expected.rows) > 0.98
    np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-3)
    packed_family, packed = built(many, storage="rabitq")
    with pytest.raises(InvalidInput, match="storage is rabitq"):
        packed_family.open([packed]).with_params(device=device)


def test_invalid_input_is_refused_with_the_reason(many: Encoding, queries: TokenVectors) -> None:
    family, part = built(many)
    retriever = family.open([part])
    with pytest.raises(InvalidInput, match="have 16 dimensions, the fde channel reads 32"):
        retriever.search(TokenVectors(queries.values[:, :16].copy(), queries.offsets), 5)
    bad = queries.values.copy()
    bad[3, 4] = np.nan
    with pytest.raises(InvalidInput, match=r"token vector 3 of \d+ of a query is not finite"):
        retriever.search(TokenVectors(bad, queries.offsets), 5)
    with pytest.raises(InvalidInput, match="multiple of 8 dimensions, but the encoding has 30"):
        FdeConfig(storage="pq8", repetitions=3, k_sim=1, d_proj=5)
    with pytest.raises(InvalidInput, match="ef_search 0"):
        FdeConfig(search="hnsw", ef_search=0)
    with pytest.raises(Incompatible, match="lacks"):
        family.with_codec({"planes": np.zeros((32, 15), np.float32)})
    with pytest.warns(UserWarning, match="ivf is known to lose"):
        FdeConfig(search="ivf")


def test_a_million_dimensions_are_packed_in_small_blocks() -> None:
    encoded = encoding(7, 24)
    tracemalloc.start()
    _, part = built(encoded, repetitions=8, k_sim=12, d_proj=32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    values = part.arrays["values"]
    assert values.shape == (24, 1 << 20)
    assert peak < 2.5 * values.nbytes + (128 << 20) + 24 * 4 * (1 << 20)
