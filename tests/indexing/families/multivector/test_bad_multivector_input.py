"""Bad input of the three families over token vectors: a clear error or the right answer, whatever the storage.

A k below one, filters of another length and empty collections are in tests/contracts; bodies of requests in
tests/service/test_hostile_requests.py; a budget of bytes that nothing meets in tests/chamfer/test_plan.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_cli import chamfer
from support_encoders import HashEncoder, make_documents

from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import Document, Encoding, Query, TokenVectors, VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.networks.token_pooling import parse_pooling, pool

N, DIM = 60, 16
_SMALL_FDE: Mapping[str, Any] = {"repetitions": 4, "k_sim": 3, "d_proj": 8}
_SMALL_LEMUR: Mapping[str, Any] = {"dim": 32, "target_documents": 20, "epochs": 1}
STORED = ("float16", "float32", "int8", "int4", "int3", "int2")
FORMS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{
        f"fde {storage}": ("fde", {**_SMALL_FDE, "storage": storage})
        for storage in ("int8", "float16", "pq8", "rabitq")
    },
    "fde centred": ("fde", {**_SMALL_FDE, "centred": True}),
    "fde hnsw": ("fde", {**_SMALL_FDE, "search": "hnsw"}),
    **{f"multivector {storage}": ("multivector", {"storage": storage}) for storage in STORED},
    **{f"{s} by centroids": ("multivector", {"storage": s, "centroids": 16, "candidates": 20}) for s in STORED},
    **{f"lemur {storage}": ("lemur", {**_SMALL_LEMUR, "storage": storage}) for storage in ("int8", "float16")},
}
LEARNT = [name for name, (_, params) in FORMS.items() if name not in ("multivector float16", "multivector float32")]


def tokens(lengths: Sequence[int], dim: int = DIM, seed: int = 0, bad: float | None = None) -> TokenVectors:
    """Unit vectors; the third dimension of the fourth is `bad`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.random.default_rng(seed).standard_normal((offsets[-1], dim))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    if bad is not None:
        values[3, 2] = bad
    return TokenVectors(values.astype(np.float32), offsets)


def encoding(vectors: TokenVectors) -> Encoding:
    n = len(vectors)
    return Encoding(np.zeros(n, np.int32), np.zeros(n, bool), tokens=vectors)


def packed(family: Family, vectors: TokenVectors) -> SegmentPart:
    documents = [Document(f"d{i}", "") for i in range(len(vectors))]
    arrays = family.pack(documents, encoding(vectors))
    return SegmentPart({name: np.asarray(array) for name, array in arrays.items()}, None, len(vectors))


def family_of(form: str, sample: TokenVectors) -> Any:
    plain = make_family(*FORMS[form])
    return plain.with_codec(plain.learn(encoding(sample)))


GOOD = tokens(np.random.default_rng(1).integers(1, 9, N).tolist())
QUERIES = tokens([4, 5], seed=9)


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def retriever(form: str) -> Any:
    family = family_of(form, GOOD)
    return family.open([packed(family, GOOD)])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (tokens([4], dim=8), "of a query have 8 dimensions, the .* channel reads 16; use the encoder .*models.encoder"),
        (tokens([0], dim=8), "of a query have 8 dimensions"),
        (tokens([2, 4], bad=np.nan), r"token vector 3 of 6 of a query is not finite; .*models\.encoder"),
        (tokens([4], bad=np.inf), "token vector 3 of 4 of a query is not finite"),
        (tokens([4], bad=-np.inf), "token vector 3 of 4 of a query is not finite"),
        (tokens([4], bad=-1e38), r"a query holds 1e\+38, expected at most 1e\+15, or scores would overflow; .*encoder"),
    ],
    ids=["dimensions", "dimensions without a token", "NaN", "infinity", "minus infinity", "overflow"],
)
def test_a_faulty_query_is_refused_with_what_was_found_and_what_changes_it(
    retriever: Any, query: TokenVectors, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        retriever.search(query, 5)
    if hasattr(retriever, "score"):
        with pytest.raises(InvalidInput, match=message):
            retriever.score(query, np.zeros((len(query), 2), dtype=np.int64))


def test_the_largest_values_allowed_give_finite_scores(retriever: Any) -> None:
    hits = retriever.search(TokenVectors(np.full((5, DIM), 1e15, dtype=np.float32), np.array([0, 5])), 5)
    assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("k", [2.5, True, "3", None, np.float64(3)])
def test_a_depth_that_is_no_whole_number_is_refused(retriever: Any, k: Any) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"k is {k!r}, expected a whole number")):
        retriever.search(QUERIES, k)


def test_a_depth_beyond_all_rows_gives_every_row_once(retriever: Any) -> None:
    for k in (N + 1, 10**12, np.int64(500)):
        hits = retriever.search(QUERIES, k)
        assert (np.sort(hits.rows, axis=1) == np.arange(N)).all()
        assert np.isfinite(hits.scores).all()


def test_a_query_without_a_token_is_answered(retriever: Any) -> None:
    hits = retriever.search(tokens([0, 3]), 5)
    assert hits.rows.shape == (2, 5)
    np.testing.assert_array_equal(hits.rows[1], retriever.search(tokens([3]), 5).rows[0])
    assert retriever.search(tokens([]), 5).rows.shape[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["NaN", "infinity"])
def test_a_document_that_is_not_finite_is_refused_by_packing_and_by_learning(form: str, bad: float) -> None:
    faulty = tokens([4, 5, 6] * 10, bad=bad)
    with pytest.raises(InvalidInput, match=r"token vector 3 of 150 of a document is not finite; .*models\.encoder"):
        packed(family_of(form, GOOD), faulty)
    if form in LEARNT:
        with pytest.raises(InvalidInput, match="token vector 3 of 150 of a document is not finite"):
            make_family(*FORMS[form]).learn(encoding(faulty))


@pytest.mark.parametrize("form", LEARNT)
@pytest.mark.parametrize("lengths", [[4, 5, 6], [0, 0]], ids=["tokens", "none"])
def test_documents_of_other_dimensions_than_the_collection_are_refused(form: str, lengths: list[int]) -> None:
    with pytest.raises(
        InvalidInput, match=r"of a document have 8 dimensions, the .* channel reads 16; use the encoder"
    ):
        packed(family_of(form, GOOD), tokens(lengths, dim=8))


def test_segments_of_different_dimensions_are_refused_without_a_codec() -> None:
    family = family_of("multivector float16", GOOD)
    with pytest.raises(Incompatible, match=r"token vectors of \[8, 16\] dimensions; build the collection again"):
        family.open([packed(family, GOOD), packed(family, tokens([2, 3], dim=8))])


def test_documents_without_a_token_score_alike_and_zero_by_maxsim(form: str) -> None:
    family = family_of(form, GOOD)
    hits = family.open([packed(family, tokens([0, 3, 0, 2, 5, 0]))]).search(QUERIES, 6)
    assert (np.sort(hits.rows, axis=1) == np.arange(6)).all()
    empty = hits.scores[np.isin(hits.rows, [0, 2, 5])].reshape(2, 3)
    assert (np.ptp(empty, axis=1) == 0).all()
    if FORMS[form][0] == "multivector":
        assert (empty == 0).all()


def test_collections_of_nothing_answer_and_so_do_those_of_documents_without_a_token(form: str) -> None:
    for lengths in ([], [0, 0, 0]):
        family = family_of(form, tokens(lengths))
        hits = family.open([packed(family, tokens(lengths))]).search(QUERIES, 5)
        assert len(hits) == 2
        assert np.isfinite(hits.scores).all()
    nothing = make_family(*FORMS[form])
    assert nothing.with_codec(nothing.learn(None)).open([]).search(QUERIES, 5).rows.shape == (2, 0)


@pytest.mark.parametrize("form", [name for name in LEARNT if not name.startswith("fde") or name.endswith("pq8")])
def test_a_codec_learnt_without_tokens_packs_no_documents_with_tokens(form: str) -> None:
    with pytest.raises(InvalidInput, match=r"from a sample without a token|had no token"):
        packed(family_of(form, tokens([0, 0])), GOOD)


@pytest.mark.parametrize("storage", [name for name in STORED if name != "float32"])
def test_a_value_beyond_float16_names_the_storage_that_keeps_it(storage: str) -> None:
    large = tokens([4, 5], bad=1e6)
    with pytest.raises(InvalidInput, match=rf"1e\+06, which {storage} storage cannot represent; .*storage to float32"):
        packed(family_of(f"multivector {storage}", GOOD), large)
    packed(family_of("multivector float32", GOOD), large)


@pytest.mark.parametrize("name", ["w0x4", "c0x4n", "c50"])
def test_pooling_keeps_documents_without_a_token_and_refuses_what_is_not_finite(name: str) -> None:
    rules = parse_pooling(name)
    kept = pool(tokens([0, 9, 0, 1]), rules.document, normalised=rules.normalised)
    assert (np.diff(kept.offsets) > 0).tolist() == [False, True, False, True]
    for bad in (np.nan, np.inf):
        with pytest.raises(InvalidInput, match="token vector 3 of 18 is not finite and cannot be pooled"):
            pool(tokens([9, 9], bad=bad), rules.document, normalised=rules.normalised)


class FaultyEncoder(HashEncoder):
    """Gives NaN for the word `broken`."""

    def _vector(self, word: str) -> np.ndarray:
        return np.full(self._dim, np.nan, np.float32) if word == "broken" else super()._vector(word)


@pytest.mark.parametrize("form", ["fde centred", "multivector float16", "int8 by centroids", "lemur int8"])
def test_a_build_over_a_faulty_document_ends_with_the_reason_and_serves_nothing(form: str, tmp_path: Path) -> None:
    family, params = FORMS[form]
    config = BuildConfig(channels=(family,), parameters={family: dict(params)})
    with pytest.raises(InvalidInput, match=r"of \d+ of a document is not finite"):
        build([*make_documents(30), Document("x", "broken")], tmp_path / "c", encoder=FaultyEncoder(), config=config)
    assert not (tmp_path / "c" / "CURRENT").exists()


def test_a_million_dimensions_are_built_and_searched_and_more_are_refused(tmp_path: Path) -> None:
    encoder, documents = HashEncoder(dim=DIM), make_documents(12, seed=4)
    large = {"repetitions": 128, "k_sim": 10, "d_proj": 8}
    config = BuildConfig(channels=("fde",), parameters={"fde": large})
    build(documents, tmp_path / "c", encoder=encoder, config=config)
    wordy = max(documents, key=lambda document: len(document.content))
    with Collection.open(tmp_path / "c") as collection:
        assert collection.bytes_by_part()["fde"] >= 12 << 20
        query = encoder.encode_queries([Query("q", wordy.content)], [VectorKind.TOKENS]).tokens
        hits = collection.channels["fde"].retriever.search(query, 1)
        assert collection.doc_ids(hits.rows[0]) == [wordy.doc_id]
    config = BuildConfig(channels=("fde",), parameters={"fde": {**large, "repetitions": 129}})
    with pytest.raises(InvalidInput, match="1,056,768 dimensions, the limit is 1,048,576; lower k_sim, repetitions"):
        build(documents, tmp_path / "d", encoder=encoder, config=config)


def test_the_command_line_refuses_an_encoding_beyond_a_million_dimensions(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "a", "text": "The king met a fox."}) + "\n")
    (tmp_path / "s.toml").write_text(
        '[build]\nchannels = ["fde"]\n[build.parameters.fde]\nrepetitions = 129\nk_sim = 10\nd_proj = 8\n'
    )
    done = chamfer("build", str(tmp_path), "--out", str(tmp_path / "c"), "--config", str(tmp_path / "s.toml"))
    assert done.returncode == 2
    assert "1,056,768 dimensions, the limit is 1,048,576" in " ".join(done.stderr.split())
    assert not (tmp_path / "c" / "CURRENT").exists()
