"""What every index family promises, checked on all of them against slow oracles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support_codes import unpacked_codes
from support_encoders import HashEncoder, make_documents
from torch.nn import functional

from chamfer.core.analysis import AnalysisConfig, Analyzer
from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import InvalidInput
from chamfer.core.types import DenseVectors, Document, Encoding, Query, SparseVectors, TokenVectors, VectorKind
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.registry import FAMILIES, make_family
from chamfer.indexing.kernels.fde import FdeMatrices, encode_queries
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.indexing.rows.storage.registry import STORAGES
from chamfer.service.search.channels import opened_channels

ENCODER = HashEncoder(dim=12)
KINDS = (VectorKind.DENSE, VectorKind.TOKENS, VectorKind.SPARSE, VectorKind.ANCHORS)
DOCUMENTS = [
    *make_documents(60, seed=1),
    Document("twin-a", "w1 w2 w3"),
    Document("twin-b", "w1 w2 w3"),
    Document("void", ""),
]
MATRICES = ("planes", "projections", "final_slots", "final_signs")
SMALL = {"lemur": {"dim": 48, "epochs": 2, "fit_tokens": 300}}
QUERIES = ["w1 w2", "w3 w4 w5 w1", "w7", "title 3 w9", "never-seen-word w1", "w1 w1 w1 w2"]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(FAMILIES)),
    *(("fde", {"storage": storage}) for storage in ("float16", "pq8", "rabitq")),
    ("fde", {"storage": "pq8", "search": "hnsw", "centred": True}),
    ("fde", {"projection": "dense", "final_dim": 256, "fill": False}),
    ("sparse", {"storage": "uint8"}),
    *(("multivector", {"storage": storage}) for storage in ("float32", "int8", "int4", "int3", "int2")),
    ("multivector", {"storage": "float16", "centroids": 5}),
    ("multivector", {"storage": "int4", "centroids": 5}),
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join([variant[0], *map(str, variant[1].values())]))
def family(request: pytest.FixtureRequest) -> Family:
    name, parameters = request.param
    plain = make_family(name, SMALL.get(name, {}) | parameters)
    return plain.with_codec(plain.learn(ENCODER.encode_documents(DOCUMENTS, KINDS)))


def as_part(arrays: dict[str, Any], live: Any, n: int) -> SegmentPart:
    """Arrays as a reader would have them."""
    whole = {}
    for name, array in arrays.items():
        if isinstance(array, ArrayStream):
            chunks = list(array.chunks)
            array = np.concatenate(chunks) if chunks else np.empty(array.shape, array.dtype)
        whole[name] = array
    return SegmentPart(whole, live, n)


def pack(family: Family, documents: Sequence[Document], live: Any = None) -> SegmentPart:
    encoding = ENCODER.encode_documents(documents, KINDS)
    return as_part(dict(family.pack(documents, encoding)), live, len(documents))


def cut(documents: Sequence[Document], boundaries: Sequence[int]) -> list[Sequence[Document]]:
    edges = [0, *boundaries, len(documents)]
    return [documents[a:b] for a, b in itertools.pairwise(edges)]


def profile(text: str) -> np.ndarray:
    """A query of family `cur`: weights f32 [8] of the anchor queries, of which its scores are sums."""
    return np.random.default_rng(len(text) + 1000 * len(set(text))).standard_normal(8).astype(np.float32)


def encode(family: Family, retriever: Any, texts: Sequence[str]) -> Any:
    if family.name == "cur":
        columns = retriever.columns(retriever.anchor_items)
        if not len(columns):
            return DenseVectors(np.zeros((len(texts), 0), dtype=np.float32))
        return DenseVectors(np.stack([(columns * profile(t)).sum(axis=1) for t in texts]))
    if family.kind is None:
        return retriever.encode_queries(texts)
    return ENCODER.encode_queries([Query("q", t) for t in texts], KINDS).vectors(family.kind)


def oracle(family: Family, documents: Sequence[Document], text: str) -> np.ndarray:
    """Scores f64 [N] from the definition; -inf where the family returns nothing."""
    if family.name == "dense":
        query = ENCODER.encode_queries([Query("q", text)], KINDS).dense.values.astype(np.float64)
        return (ENCODER.encode_documents(documents, KINDS).dense.values.astype(np.float64) @ query.T)[:, 0]
    if family.name == "multivector":
        query = ENCODER.encode_queries([Query("q", text)], KINDS).tokens.values.astype(np.float64)
        tokens = ENCODER.encode_documents(documents, KINDS).tokens
        stored = stored_tokens(family, documents)
        pairs = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        return np.array([(query @ stored[a:b].T).max(axis=1).sum() if b > a else 0.0 for a, b in pairs])
    if family.name == "fde":
        stored = pack(family, documents).arrays
        codec = family.learn(ENCODER.encode_documents(DOCUMENTS, KINDS))
        matrices = FdeMatrices(*(np.asarray(codec[name]) for name in MATRICES))
        tokens = ENCODER.encode_queries([Query("q", text)], KINDS).tokens
        query = encode_queries(tokens.values - codec["centre"], tokens.offsets, matrices, family.config.shape())[0]
        if family.config.storage == "rabitq":  # an estimate: faiss is the reference
            return STORAGES["rabitq"].scanner(stored, codec)(query).astype(np.float64)
        return STORAGES[family.config.storage].unpack(stored, codec).astype(np.float64) @ query
    if family.name == "sparse":
        stored = family.open([pack(family, documents)]).vectors(np.arange(len(documents)))
        query = ENCODER.encode_queries([Query("q", text)], KINDS).sparse
        scores = (as_matrix(stored, query.vocabulary) @ as_matrix(query, query.vocabulary).T)[:, 0]
        return np.where(scores > 0, scores, -np.inf)
    if family.name == "lemur":
        stored = pack(family, documents).arrays
        codec = family.learn(ENCODER.encode_documents(documents, KINDS))
        query = torch.tensor(ENCODER.encode_queries([Query("q", text)], KINDS).tokens.values)
        weight, bias, gain, shift = (torch.tensor(codec[name]) for name in ("weight", "bias", "gain", "shift"))
        normed = functional.layer_norm(query @ weight + bias, (len(bias),), gain, shift)
        psi = functional.gelu(normed).sum(dim=0).double().numpy() / 32
        return stored["values"].astype(np.float64) * stored["scales"][:, None] @ psi
    if family.name == "cur":
        columns = ENCODER.encode_documents(documents, KINDS).anchors.values.values.astype(np.float64)
        return columns @ profile(text).astype(np.float64)
    return bm25(documents, text)


def as_matrix(vectors: SparseVectors, vocabulary: int) -> np.ndarray:
    matrix = np.zeros((len(vectors), vocabulary))
    matrix[np.repeat(np.arange(len(vectors)), np.diff(vectors.offsets)), vectors.terms] = vectors.weights
    return matrix


def stored_tokens(family: Family, documents: Sequence[Document]) -> np.ndarray:
    """Token vectors f64 [T, D] as the family stores them, codes decoded from the formula."""
    arrays = pack(family, documents).arrays
    if "scales" not in arrays:
        return np.asarray(arrays["values"], dtype=np.float64)
    codec = family.learn(ENCODER.encode_documents(DOCUMENTS, KINDS))
    bits = family.config.bits
    codes = unpacked_codes(arrays["values"], bits, len(codec["step"]))
    centres = codec["centroids"][arrays["centroid_ids"] if "centroid_ids" in arrays else np.zeros(len(codes), int)]
    decoded = arrays["scales"][:, None].astype(np.float64) * (centres + codec["step"] * (codes - (2**bits - 1) / 2))
    return decoded.astype(np.float16).astype(np.float64)


def bm25(documents: Sequence[Document], text: str, k1: float = 0.9, b: float = 0.4) -> np.ndarray:
    analyze = Analyzer(AnalysisConfig())
    bags = [Counter(analyze(d.text) + analyze(d.title)) for d in documents]
    mean = np.mean([sum(bag.values()) for bag in bags])
    scores = np.zeros(len(documents))
    for term, count in Counter(analyze(text)).items():
        frequency = sum(term in bag for bag in bags)
        idf = np.log(1 + (len(bags) - frequency + 0.5) / (frequency + 0.5))
        for i, bag in enumerate(bags):
            tf = bag[term]
            scores[i] += count * idf * tf / (tf + k1 * (1 - b + b * sum(bag.values()) / mean)) if tf else 0.0
    return np.where(scores > 0, scores, -np.inf)


def test_results_equal_the_definition(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    hits = retriever.search(encode(family, retriever, QUERIES), len(DOCUMENTS))
    for i, text in enumerate(QUERIES):
        expected = oracle(family, DOCUMENTS, text)
        rows, scores = hits.of(i)
        assert len(rows) == np.count_nonzero(np.isfinite(expected))
        rounded = family.name in ("fde", "lemur") or getattr(
            family.config, "bits", None
        )  # the query; a value on the edge of f16
        tolerance = 1e-3 if rounded else 1e-5
        np.testing.assert_allclose(scores, expected[rows], rtol=tolerance, atol=tolerance)
        assert np.all(np.diff(scores) <= 0)


def test_ties_are_ordered_by_smaller_row(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    rows, scores = retriever.search(encode(family, retriever, ["w1 w2 w3"]), len(DOCUMENTS)).of(0)
    a, b = len(DOCUMENTS) - 3, len(DOCUMENTS) - 2
    assert scores[rows == a] == scores[rows == b]
    assert np.flatnonzero(rows == a) < np.flatnonzero(rows == b)


def test_a_query_has_the_same_bits_in_any_batch(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    together = retriever.search(encode(family, retriever, QUERIES * 11), 7)
    for i, text in enumerate(QUERIES * 11):
        alone = retriever.search(encode(family, retriever, [text]), 7)
        np.testing.assert_array_equal(together.of(i)[0], alone.of(0)[0])
        np.testing.assert_array_equal(together.of(i)[1], alone.of(0)[1])


def test_scores_do_not_depend_on_the_division_into_segments(family: Family) -> None:
    one = family.open([pack(family, DOCUMENTS)])
    many = family.open([pack(family, part) for part in cut(DOCUMENTS, [1, 8, 8, 30, 62])])
    expected = one.search(encode(family, one, QUERIES), 20)
    hits = many.search(encode(family, many, QUERIES), 20)
    np.testing.assert_array_equal(hits.rows, expected.rows)
    np.testing.assert_array_equal(hits.scores, expected.scores)


def test_deleted_documents_do_not_influence_scores(family: Family) -> None:
    live = np.random.default_rng(5).random(len(DOCUMENTS)) < 0.6
    survivors = [d for d, alive in zip(DOCUMENTS, live, strict=True) if alive]
    clean = family.open([pack(family, survivors)])
    holed = family.open([pack(family, DOCUMENTS[:20], live[:20]), pack(family, DOCUMENTS[20:], live[20:])])
    expected = clean.search(encode(family, clean, QUERIES), 15)
    hits = holed.search(encode(family, holed, QUERIES), 15)
    renumbered = np.flatnonzero(live)
    np.testing.assert_array_equal(hits.rows, np.where(expected.rows >= 0, renumbered[expected.rows], -1))
    np.testing.assert_array_equal(hits.scores, expected.scores)


def test_merging_parts_gives_the_arrays_of_packing_the_survivors(family: Family) -> None:
    live = np.random.default_rng(6).random(len(DOCUMENTS)) < 0.7
    survivors = [d for d, alive in zip(DOCUMENTS, live, strict=True) if alive]
    parts = [pack(family, DOCUMENTS[:25], live[:25]), pack(family, DOCUMENTS[25:40], live[25:40])]
    parts.append(pack(family, DOCUMENTS[40:], live[40:]))
    merged = as_part(dict(family.merge(parts)), None, len(survivors))
    packed = pack(family, survivors)
    assert merged.arrays.keys() == packed.arrays.keys()
    for name in packed.arrays:
        if name == "largest_norm":
            assert merged.arrays[name] >= packed.arrays[name]
        else:
            np.testing.assert_array_equal(merged.arrays[name], packed.arrays[name], err_msg=name)
            assert merged.arrays[name].dtype == packed.arrays[name].dtype


def test_only_allowed_rows_are_returned_and_none_is_lost(family: Family) -> None:
    retriever = family.open([pack(family, part) for part in cut(DOCUMENTS, [30])])
    allowed = np.random.default_rng(7).random(len(DOCUMENTS)) < 0.3
    queries = encode(family, retriever, QUERIES)
    everything = retriever.search(queries, len(DOCUMENTS))
    hits = retriever.search(queries, len(DOCUMENTS), allowed)
    for i in range(len(QUERIES)):
        rows, scores = everything.of(i)
        np.testing.assert_array_equal(hits.of(i)[0], rows[allowed[rows]])
        np.testing.assert_array_equal(hits.of(i)[1], scores[allowed[rows]])


def test_nothing_allowed_gives_nothing(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    hits = retriever.search(encode(family, retriever, QUERIES), 5, np.zeros(len(DOCUMENTS), dtype=bool))
    assert all(len(hits.of(i)[0]) == 0 for i in range(len(QUERIES)))


def test_a_smaller_k_is_a_prefix(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    queries = encode(family, retriever, QUERIES)
    deep = retriever.search(queries, 40)
    for k in (1, 2, 5, 39):
        shallow = retriever.search(queries, k)
        for i in range(len(QUERIES)):
            np.testing.assert_array_equal(shallow.of(i)[0], deep.of(i)[0][:k])


def test_an_empty_collection_returns_nothing(family: Family) -> None:
    for retriever in (family.open([]), family.open([pack(family, [])])):
        hits = retriever.search(encode(family, retriever, QUERIES), 5)
        assert len(hits) == len(QUERIES)
        assert all(len(hits.of(i)[0]) == 0 for i in range(len(QUERIES)))


def test_k_below_one_and_a_filter_of_another_length_are_refused(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    queries = encode(family, retriever, QUERIES[:1])
    with pytest.raises(InvalidInput, match="k is 0"):
        retriever.search(queries, 0)
    with pytest.raises(InvalidInput, match="allowed has shape"):
        retriever.search(queries, 3, np.ones(5, dtype=bool))


def test_unknown_search_parameters_are_named(family: Family) -> None:
    with pytest.raises(InvalidInput, match="nprobe"):
        family.open([pack(family, DOCUMENTS)]).with_params(nprobe=3)


def test_packing_twice_gives_the_same_bytes(family: Family) -> None:
    first, second = pack(family, DOCUMENTS), pack(family, DOCUMENTS)
    for name, array in first.arrays.items():
        assert array.tobytes() == second.arrays[name].tobytes()


def rows_of(vectors: Any) -> list[Any]:
    """The vectors of each row, as bytes."""
    if isinstance(vectors, DenseVectors):
        return [row.tobytes() for row in vectors.values]
    spans = list(itertools.pairwise(vectors.offsets.tolist()))
    if isinstance(vectors, SparseVectors):
        return [(vectors.terms[a:b].tolist(), vectors.weights[a:b].tobytes()) for a, b in spans]
    return [vectors.values[a:b].tobytes() for a, b in spans]


@pytest.fixture
def expandable(family: Family) -> Family:
    if family.name in ("cur", "lemur"):
        pytest.skip("feedback reads neither score columns nor learnt reductions")
    return family


def test_stored_vectors_do_not_depend_on_segments_or_on_what_else_is_read(expandable: Family) -> None:
    rows = np.array([5, 62, 0, 31, 5], dtype=np.int64)
    whole: Any = expandable.open([pack(expandable, DOCUMENTS)])
    cut_up: Any = expandable.open([pack(expandable, part) for part in cut(DOCUMENTS, [1, 30])])
    everything = rows_of(whole.vectors(np.arange(len(DOCUMENTS))))
    assert rows_of(whole.vectors(rows)) == [everything[row] for row in rows]
    assert rows_of(cut_up.vectors(rows)) == [everything[row] for row in rows]
    assert len(whole.vectors(rows[:0])) == 0


def test_queries_in_their_stored_form_give_the_same_results(expandable: Family) -> None:
    retriever: Any = expandable.open([pack(expandable, DOCUMENTS)])
    queries = encode(expandable, retriever, QUERIES)
    plain, stored = retriever.search(queries, 20), retriever.search(retriever.stored_form(queries), 20)
    np.testing.assert_array_equal(plain.rows, stored.rows)
    np.testing.assert_array_equal(plain.scores, stored.scores)
    assert type(retriever.vectors(np.arange(2))) is type(retriever.stored_form(queries))


def test_doubling_the_stored_form_of_a_query_doubles_its_scores(expandable: Family) -> None:
    if getattr(expandable.config, "storage", "") == "rabitq":
        pytest.skip("faiss' RaBitQ estimates are not linear in the query's length")
    retriever: Any = expandable.open([pack(expandable, DOCUMENTS)])
    stored = retriever.stored_form(encode(expandable, retriever, QUERIES))
    twice = {
        VectorKind.DENSE: lambda v: DenseVectors(v.values * np.float32(2)),
        VectorKind.TOKENS: lambda v: TokenVectors(v.values * np.float32(2), v.offsets),
        VectorKind.SPARSE: lambda v: SparseVectors(v.weights * np.float32(2), v.terms, v.offsets, v.vocabulary),
    }[retriever.stored_kind](stored)
    once, hits = retriever.search(stored, 60), retriever.search(twice, 60)
    for query in range(len(QUERIES)):
        np.testing.assert_allclose(hits.of(query)[1], 2 * once.of(query)[1], rtol=1e-5)


def test_a_vector_of_every_document_is_common_and_a_foreign_one_is_not() -> None:
    family = make_family("multivector")
    tokens = np.eye(12, dtype=np.float32)[[0, 1, 0, 2, 0]]
    encoding = Encoding(
        np.zeros(4, np.int32), np.zeros(4, bool), tokens=TokenVectors(tokens, np.array([0, 2, 4, 5, 5], dtype=np.int64))
    )
    documents = [Document(str(n), "x") for n in range(4)]
    retriever: Any = family.open([as_part(dict(family.pack(documents, encoding)), None, 4)])
    assert retriever.commonness(np.eye(12, dtype=np.float32)[[0, 1, 11]]).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert family.open([]).commonness(tokens).tolist() == [0.0] * 5  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="have 8 dimensions, the multivector channel reads 12"):
        retriever.commonness(np.eye(8, dtype=np.float32))


CAPABILITIES = {
    "cur": {"anchor_scores"},
    "dense": {"expandable"},
    "fde": {"expandable"},
    "lemur": set(),
    "lexical": {"expandable", "text_encoder"},
    "multivector": {"rescorer", "expandable", "token_expandable"},
    "sparse": {"expandable"},
}


def test_the_service_sees_exactly_the_capabilities_of_a_family(family: Family) -> None:
    retriever = family.open([pack(family, DOCUMENTS)])
    view: Any = SimpleNamespace(channels={"c": SimpleNamespace(name="c", family=family, retriever=retriever)})
    channel = opened_channels(view)["c"]
    offered = {name for name in set().union(*CAPABILITIES.values()) if getattr(channel, name) is not None}
    assert offered == CAPABILITIES[family.name]
    assert channel.kind is family.kind
