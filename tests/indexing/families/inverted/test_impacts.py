"""The inverted index of impacts equals brute force, whatever the layout, the twin and the filter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Encoding, SparseVectors
from chamfer.indexing.families.inverted import list_pruning
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.kernels import _native_impacts
from chamfer.indexing.kernels.impacts import quantise
from chamfer.indexing.rows.segment_part import SegmentPart

VOCABULARY = 40
# Weights of few values, so that scores tie.
ROWS = st.lists(st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([0.25, 0.5, 1.0, 3.1]), max_size=8))
ASKED = st.dictionaries(st.integers(0, VOCABULARY + 9), st.sampled_from([0.5, 1.0, 2.0]), max_size=8)
PARTS = st.lists(ROWS, min_size=1, max_size=4)
WORDS = st.lists(
    st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij", "kl", "mn"]), max_size=6).map(" ".join), max_size=12
)

twins = pytest.mark.parametrize(
    "native",
    [
        pytest.param(
            True, marks=pytest.mark.skipif(_native_impacts.library() is None, reason="sparse.c was not built here")
        ),
        False,
    ],
)


def vectors(rows: Sequence[dict[int, float]], vocabulary: int = VOCABULARY) -> SparseVectors:
    terms = [np.array(sorted(row), dtype=np.int32) for row in rows]
    weights = [np.array([row[t] for t in sorted(row)], dtype=np.float32) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in terms])]).astype(np.int64)
    empty_i, empty_f = np.empty(0, np.int32), np.empty(0, np.float32)
    return SparseVectors(np.concatenate([empty_f, *weights]), np.concatenate([empty_i, *terms]), offsets, vocabulary)


def part(family: Any, rows: Sequence[dict[int, float]], live: Any = None) -> SegmentPart:
    encoding = Encoding(np.zeros(len(rows), np.int32), np.zeros(len(rows), bool), sparse=vectors(rows))
    return SegmentPart(family.pack([Document(str(i)) for i in range(len(rows))], encoding), live, len(rows))


def dense(rows: Sequence[dict[int, float]]) -> np.ndarray:
    matrix = np.zeros((len(rows), VOCABULARY + 10))
    for i, row in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    return matrix


def brute_force(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.lexsort((np.arange(len(scores)), -scores))
    rows = rows[scores[rows] > 0][:k]
    return rows, scores[rows]


def use(native: bool, patch: pytest.MonkeyPatch) -> None:
    if not native:
        patch.setattr(_native_impacts, "library", lambda: None)


@twins
@settings(max_examples=50, deadline=None)
@given(parts=PARTS, queries=st.lists(ASKED, min_size=1, max_size=3), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_learned_sparse_search_equals_brute_force_in_every_layout(
    native: bool, parts: list[list[dict[int, float]]], queries: list[dict[int, float]], k: int, seed: int
) -> None:
    family = make_family("sparse")
    rows = [row for rows_of_part in parts for row in rows_of_part]
    live = np.random.default_rng(seed).random(len(rows)) < 0.8
    edges = np.cumsum([0, *(len(rows_of_part) for rows_of_part in parts)])
    opened = [part(family, part_rows, live[a:b]) for part_rows, a, b in zip(parts, edges[:-1], edges[1:], strict=True)]
    expected = dense(queries) @ dense(rows).T * live
    with pytest.MonkeyPatch.context() as patch:
        use(native, patch)
        hits = family.open(opened).search(vectors(queries, VOCABULARY + 10), k)
    for q in range(len(queries)):
        best_rows, best_scores = brute_force(expected[q], k)
        np.testing.assert_allclose(hits.of(q)[1], best_scores, rtol=1e-5)
        exact = dict(zip(*brute_force(expected[q], len(rows)), strict=True))
        np.testing.assert_allclose(hits.of(q)[1], [exact[r] for r in hits.of(q)[0]], rtol=1e-5)
        assert len(set(hits.of(q)[0].tolist())) == len(best_rows)


@twins
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(WORDS, min_size=1, max_size=4), text=st.sampled_from(["ab", "ab cd ab", "mn zz ij", "zz", ""]))
def test_bm25_is_the_same_bits_in_every_layout(native: bool, parts: list[list[str]], text: str) -> None:
    family = make_family("lexical")
    texts = [words for texts_of_part in parts for words in texts_of_part]

    def opened(blocks: Sequence[Sequence[str]]) -> Any:
        packed = [(family.pack([Document(t, t) for t in block], None), len(block)) for block in blocks]
        return family.open([SegmentPart(arrays, None, n) for arrays, n in packed])

    with pytest.MonkeyPatch.context() as patch:
        use(native, patch)
        one, many = opened([texts]), opened(parts)
        expected, hits = (r.search(r.encode_queries([text]), 5) for r in (one, many))
    np.testing.assert_array_equal(hits.rows, expected.rows)
    np.testing.assert_array_equal(hits.scores, expected.scores)


def large(storage: str, n: int = 5000, edges: Sequence[int] = (1700,)) -> tuple[Any, SparseVectors]:
    rng = np.random.default_rng(7)
    chosen = (rng.random((n, VOCABULARY)) < rng.random(VOCABULARY) ** 3) * rng.gamma(2.0, 0.4, (n, VOCABULARY))
    rows = [{int(t): float(row[t]) for t in np.flatnonzero(row)} for row in chosen]
    family = make_family("sparse", {"storage": storage})
    queries = [{int(t): float(rng.gamma(1.0)) + 0.01 for t in rng.integers(0, VOCABULARY, 9)} for _ in range(20)]
    cuts = [0, *(min(edge, n) for edge in edges), n]
    return family.open([part(family, rows[a:b]) for a, b in pairwise(cuts)]), vectors(queries)


@pytest.mark.skipif(_native_impacts.library() is None, reason="sparse.c was not built here")
@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.002])
@pytest.mark.parametrize("k", [1, 10, 700, 6000])
def test_both_twins_return_the_same_bits(storage: str, share: float, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever, queries = large(storage)
    allowed = None if share == 1.0 else np.random.default_rng(3).random(len(retriever)) < share
    fast = retriever.search(queries, k, allowed)
    monkeypatch.setattr(_native_impacts, "library", lambda: None)
    slow = retriever.search(queries, k, allowed)
    np.testing.assert_array_equal(fast.rows, slow.rows)
    np.testing.assert_array_equal(fast.scores, slow.scores)


@pytest.fixture
def cheap_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small collections are pruned too."""
    monkeypatch.setattr(list_pruning, "ROW_POSTINGS", 1)
    monkeypatch.setattr(list_pruning, "RESCORED", 40)
    monkeypatch.setattr(list_pruning, "RESCORED_FACTOR", 1)


@twins
@pytest.mark.usefixtures("cheap_rows")
@pytest.mark.parametrize("storage", ["float32", "uint8"])
def test_pruning_returns_true_scores_and_hardly_misses_a_row(
    native: bool, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(native, monkeypatch)
    retriever, queries = large(storage)
    everything = retriever.search(queries, len(retriever))
    shares = []
    for share in (0.1, 0.5):
        hits = retriever.with_params(pruning=share).search(queries, 10)
        kept = []
        for q in range(len(queries)):
            scores = dict(zip(*(a.tolist() for a in everything.of(q)), strict=True))
            assert hits.of(q)[1].tolist() == [scores[r] for r in hits.of(q)[0].tolist()]
            kept.append(np.mean(hits.of(q)[1] >= everything.of(q)[1][9]))
        shares.append(np.mean(kept))
    assert 1 > shares[0] > 0.99
    assert shares[0] > shares[1] > 0.5


@pytest.mark.skipif(_native_impacts.library() is None, reason="sparse.c was not built here")
@pytest.mark.usefixtures("cheap_rows")
@pytest.mark.parametrize("allowed_share", [1.0, 0.5])
@pytest.mark.parametrize("storage", ["float32", "uint8"])
def test_pruned_results_depend_neither_on_the_twin_nor_on_the_layout(
    storage: str, allowed_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = np.random.default_rng(3).random(5000) < allowed_share
    hits = []
    for native, edges in ((True, (1700,)), (True, (0, 40, 4000)), (False, (1700,))):
        use(native, monkeypatch)
        retriever, queries = large(storage, edges=edges)
        hits.append(retriever.with_params(pruning=0.4).search(queries, 10, allowed))
    for other in hits[1:]:
        np.testing.assert_array_equal(hits[0].rows, other.rows)
        np.testing.assert_array_equal(hits[0].scores, other.scores)
    assert (hits[0].rows != retriever.search(queries, 10, allowed).rows).any(), "something was pruned"


@pytest.mark.usefixtures("cheap_rows")
def test_pruning_is_exact_where_every_row_is_scored_or_a_filter_leaves_few(monkeypatch: pytest.MonkeyPatch) -> None:
    retriever, queries = large("float32", 600)
    few = np.random.default_rng(3).random(600) < 0.02
    exact, strict = retriever.search(queries, 10), retriever.search(queries, 10, few)
    loose = retriever.with_params(pruning=0.7)
    np.testing.assert_array_equal(loose.search(queries, 10, few).rows, strict.rows)
    monkeypatch.setattr(list_pruning, "RESCORED", 600)
    np.testing.assert_array_equal(retriever.with_params(pruning=0.01).search(queries, 10).rows, exact.rows)


def test_a_small_collection_is_searched_exactly_whatever_the_pruning() -> None:
    retriever, queries = large("uint8")
    exact, hits = retriever.search(queries, 10), retriever.with_params(pruning=0.9).search(queries, 10)
    np.testing.assert_array_equal(hits.rows, exact.rows)


def test_codes_are_within_half_a_step_of_the_weights() -> None:
    weights = np.array([3.0, 0.001, 1.7, 0.02, 2.5], dtype=np.float32)
    codes, scales = quantise(weights, np.array([0, 3, 3, 5]))
    np.testing.assert_allclose(scales, [3.0 / 255, 0, 2.5 / 255], rtol=1e-6)
    assert codes.min() == 1, "a stored term never vanishes"
    back = codes * np.repeat(scales, [3, 0, 2])
    assert (np.abs(back - weights)[[0, 2, 3, 4]] <= np.repeat(scales, [3, 0, 2])[[0, 2, 3, 4]] * 0.5001).all()


def test_stored_vectors_come_back() -> None:
    rows = [{3: 0.5, 7: 1.0}, {}, {0: 3.1, 3: 0.25}]
    family = make_family("sparse")
    retriever = family.open([part(family, rows[:1]), part(family, rows[1:])])
    back = retriever.vectors(np.array([2, 0, 1]))
    assert back.offsets.tolist() == [0, 2, 4, 4]
    assert back.terms.tolist() == [0, 3, 3, 7]
    np.testing.assert_array_equal(back.weights, np.array([3.1, 0.25, 0.5, 1.0], dtype=np.float32))


def test_term_frequencies_come_back() -> None:
    family = make_family("lexical")
    documents = [Document("a", "wolf wolf pig"), Document("b", "pig")]
    retriever: Any = family.open([SegmentPart(family.pack([d], None), None, 1) for d in documents])
    query = retriever.encode_queries(["wolf wolf pig"])
    back = retriever.vectors([0, 1])
    np.testing.assert_array_equal(back.terms[:2], query.terms)
    np.testing.assert_array_equal(back.weights[:2], query.weights)
    assert back.weights[2:].tolist() == [1.0]


def test_impossible_pruning_is_refused() -> None:
    for name in ("sparse", "lexical"):
        with pytest.raises(InvalidInput, match=r"pruning is 1\.5"):
            make_family(name, {"pruning": 1.5})


@twins
def test_segments_are_merged_by_score_then_row_and_a_filter_reaches_each(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(native, monkeypatch)
    family = make_family("sparse")
    weights = [1.0, 3.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    parts = [
        part(family, [{5: w} for w in part_weights]) for part_weights in (weights[:3], [], weights[3:5], weights[5:])
    ]
    retriever = family.open(parts)
    queries = vectors([{5: 2.0}, {9: 1.0}], VOCABULARY)
    hits = retriever.search(queries, 4)
    assert hits.of(0)[0].tolist() == [1, 3, 6, 2]
    assert hits.of(0)[1].tolist() == [6.0, 6.0, 6.0, 4.0]
    assert hits.of(1)[0].tolist() == []
    allowed = np.array([True, False, True, False, True, True, False])
    assert retriever.search(queries, 4, allowed).of(0)[0].tolist() == [2, 5, 0, 4]
