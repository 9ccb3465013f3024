"""A filter that leaves few rows costs the scoring of those rows, and changes no score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from chamfer.core.types import DenseVectors, TokenVectors
from chamfer.indexing.families import dense
from chamfer.indexing.families.dense import DenseRetriever
from chamfer.indexing.families.multivector import search as multivector
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.families.multivector.token_storage import StoredTokens
from chamfer.indexing.rows import scan
from chamfer.indexing.rows.scan import RowScan
from chamfer.indexing.rows.segment_part import Codec, SegmentPart
from chamfer.indexing.rows.storage.protocol import Scan
from chamfer.indexing.rows.storage.registry import STORAGES

N, DIM = 3_000, 64
RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((N, DIM)).astype(np.float32)
QUERIES = RNG.standard_normal((3, DIM)).astype(np.float32)
ONE_PERCENT = np.random.default_rng(1).permutation(N) < N // 100


class Counting:
    """A storage that counts the rows that its scans score."""

    def __init__(self, name: str) -> None:
        self.storage, self.scored = STORAGES[name], 0

    def learn(self, values: Any, repetitions: int, seed: int) -> Codec:
        return self.storage.learn(values, repetitions, seed)

    def pack(self, values: Any, codec: Codec) -> dict[str, Any]:
        return self.storage.pack(values, codec)

    def unpack(self, arrays: Mapping[str, Any], codec: Codec) -> Any:
        return self.storage.unpack(arrays, codec)

    def scanner(self, arrays: Mapping[str, Any], codec: Codec) -> Scan:
        scanner = self.storage.scanner(arrays, codec)

        def counted(query: Any) -> Any:
            scores = scanner(query)
            self.scored += len(scores)
            return scores

        return counted


def parts_of(arrays: Mapping[str, Any], cut: int = 1_000) -> list[SegmentPart]:
    """Two segments."""
    halves = ({name: array[where] for name, array in arrays.items()} for where in (slice(cut), slice(cut, None)))
    return [SegmentPart(half, None, n) for half, n in zip(halves, (cut, N - cut), strict=True)]


@pytest.mark.parametrize("name", sorted(STORAGES))
@pytest.mark.parametrize("copied_bytes", [1 << 20, 500])
def test_a_scan_scores_the_allowed_rows_alone_and_gives_their_bits(
    name: str, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_COPIED_BYTES", copied_bytes)
    storage = Counting(name)
    codec = storage.learn(VALUES, 2, 1)
    arrays = storage.pack(VALUES, codec)
    rows = RowScan(parts_of(arrays), storage, codec, list(arrays))
    everything = rows.search(3, QUERIES, N, None)
    storage.scored = 0
    hits = rows.search(3, QUERIES, 20, ONE_PERCENT)
    assert storage.scored == 3 * np.count_nonzero(ONE_PERCENT)
    for q in range(3):
        order = np.flatnonzero(ONE_PERCENT[everything.rows[q]])[:20]
        np.testing.assert_array_equal(hits.rows[q], everything.rows[q][order])
        np.testing.assert_array_equal(hits.scores[q], everything.scores[q][order])


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_dense_search_multiplies_the_allowed_rows_alone(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[int] = []
    products = dense.products

    def counted(values: Any, queries: Any) -> Any:
        multiplied.append(len(values))
        return products(values, queries)

    monkeypatch.setattr(dense, "products", counted)
    norm = np.array([np.linalg.norm(VALUES, axis=1).max() * 1.01])
    parts = [
        SegmentPart({**part.arrays, "largest_norm": norm}, None, part.n_documents)
        for part in parts_of({"values": VALUES.astype(storage)})
    ]
    retriever = DenseRetriever(parts)
    everything = retriever.search(DenseVectors(QUERIES), N)
    multiplied.clear()
    hits = retriever.search(DenseVectors(QUERIES), 20, ONE_PERCENT)
    assert sum(multiplied) == np.count_nonzero(ONE_PERCENT)
    for q in range(3):
        order = np.flatnonzero(ONE_PERCENT[everything.rows[q]])[:20]
        np.testing.assert_array_equal(hits.rows[q], everything.rows[q][order])
        np.testing.assert_array_equal(hits.scores[q], everything.scores[q][order])


@pytest.mark.parametrize("centroids", [0, 30])
def test_late_interaction_reads_the_allowed_documents_alone(centroids: int, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = np.arange(0, 2 * N + 1, 2, dtype=np.int64)
    tokens = TokenVectors(np.random.default_rng(2).standard_normal((2 * N, 32)).astype(np.float32), offsets)
    encoding: Any = type("Encoded", (), {"tokens": tokens})
    family = MultivectorFamily(MultivectorConfig(centroids=centroids))
    family = family.with_codec(family.learn(encoding))
    retriever = family.open([SegmentPart(family.pack([], encoding), None, N)])
    documents: list[int] = []
    centroid_scan, maxsim = multivector.scan, StoredTokens.maxsim_fast
    monkeypatch.setattr(
        multivector, "scan", lambda table, ids, ends: documents.append(len(ends) - 1) or centroid_scan(table, ids, ends)
    )
    monkeypatch.setattr(
        StoredTokens, "maxsim_fast", lambda self, query, rows: documents.append(len(rows)) or maxsim(self, query, rows)
    )
    n_allowed = int(np.count_nonzero(ONE_PERCENT))
    hits = retriever.search(tokens.take([5]), 20, ONE_PERCENT)
    assert max(documents) <= n_allowed
    assert len(documents) == (2 if centroids else 1)
    assert ONE_PERCENT[hits.rows[0]].all()


def test_a_filter_that_leaves_most_rows_copies_none(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = STORAGES["float16"].pack(VALUES, {})
    rows = RowScan(parts_of(arrays), STORAGES["float16"], {}, list(arrays))
    monkeypatch.setattr(scan, "_taken", None)  # would fail if it were called
    hits = rows.search(3, QUERIES, 20, np.arange(N) % 2 == 0)
    assert (hits.rows % 2 == 0).all()
