"""Training groups from BEIR folders: teachers, stored vectors, and resuming after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support_beir import write_sets

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Encoding, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.encoders.mini import MiniEncoder, load_mini
from recipes import vectors
from recipes.prepare import SOURCES, Source, mined

BOTH = (VectorKind.DENSE, VectorKind.TOKENS)
DEVICE = DeviceConfig(backend="torch", threads=1)


@pytest.fixture(scope="module")
def encoder() -> MiniEncoder:
    return load_mini("mini-384", DEVICE, projected=False)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 5)


def source(name: str) -> Source:
    """The source of this name, with the whole of its corpus."""
    return replace(next(s for s in SOURCES if s.name == name), share=1.0)


class Interrupted(Exception):
    """Stands for a kill."""


class Counting:
    """`mini-384` that counts the texts it encodes, and raises at the limit."""

    def __init__(self, encoder: MiniEncoder, most: int = 10**9) -> None:
        self._encoder = encoder
        self._most = most
        self.spec = encoder.spec
        self.count = 0

    def encode_queries(self, queries: list[Query], kinds: tuple[VectorKind, ...]) -> Encoding:
        return self._encoder.encode_queries(queries, kinds)

    def encode_documents(self, documents: list[Document], kinds: tuple[VectorKind, ...]) -> Encoding:
        if self.count + len(documents) > self._most:
            raise Interrupted
        self.count += len(documents)
        return self._encoder.encode_documents(documents, kinds)


@pytest.mark.parametrize("name", ["fairytaleqa", "scifact-titles", "medquad"])
def test_teachers_are_those_of_the_texts_that_the_groups_name(tmp_path: Path, encoder: MiniEncoder, name: str) -> None:
    chosen = source(name)
    groups, texts = mined(chosen, write_sets(tmp_path) / chosen.folder, tmp_path / "out", encoder)
    assert groups
    for group in groups:
        encoded_query = encoder.encode_queries([Query("", group.query)], BOTH)
        for index, doc_id in enumerate(group.doc_ids):
            encoded_document = encoder.encode_documents([Document("", texts[doc_id])], BOTH)
            assert encoded_query.dense is not None
            assert encoded_document.dense is not None
            assert encoded_query.tokens is not None
            assert encoded_document.tokens is not None
            best = [max(float(q @ d) for d in encoded_document.tokens.values) for q in encoded_query.tokens.values]
            assert group.teachers["maxsim"][index] == pytest.approx(sum(best), abs=5e-3)
            assert group.teachers["dense"][index] == pytest.approx(
                float(encoded_query.dense.values[0] @ encoded_document.dense.values[0]), abs=1e-5
            )
        assert [label > 0 for label in group.labels].count(True) >= 1


def test_documents_of_title_queries_are_stored_without_their_title(tmp_path: Path, encoder: MiniEncoder) -> None:
    groups, texts = mined(source("scifact-titles"), write_sets(tmp_path) / "scifact", tmp_path / "out", encoder)
    for group in groups:
        assert not texts[group.doc_ids[group.positives[0]]].startswith(group.query)


def test_stored_vectors_are_those_of_mini_and_raw_ones_are_removed(tmp_path: Path, encoder: MiniEncoder) -> None:
    from chamfer.indexing.building.corpus import read_corpus

    data, out = write_sets(tmp_path), tmp_path / "out"
    mined(source("nl2bash"), data / "nl2bash", out, encoder)
    wanted = load_mini("mini", DEVICE, projected=True).encode_documents(
        list(read_corpus(str(data / "nl2bash"))), [VectorKind.TOKENS]
    )
    assert wanted.tokens is not None
    with np.load(out / "nl2bash.npz") as kept:
        np.testing.assert_array_equal(kept["offsets"], wanted.tokens.offsets)
        np.testing.assert_allclose(kept["tokens"].astype(np.float32), wanted.tokens.values, atol=2e-3)
        assert len(kept["q_offsets"]) == len(kept["query_ids"]) + 1
    assert not any((out / ".raw").iterdir())


def test_a_killed_run_resumes_at_the_first_missing_block(tmp_path: Path, encoder: MiniEncoder) -> None:
    folder = write_sets(tmp_path) / "fairytaleqa"
    whole = Counting(encoder)
    expected = mined(source("fairytaleqa"), folder, tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        mined(source("fairytaleqa"), folder, tmp_path / "out", Counting(encoder, most=11))
    rest = Counting(encoder)
    assert mined(source("fairytaleqa"), folder, tmp_path / "out", rest) == expected
    assert rest.count == whole.count - 10
    again = Counting(encoder)
    assert mined(source("fairytaleqa"), folder, tmp_path / "out", again) == expected
    assert again.count == 0


def test_changed_texts_under_the_same_name_are_encoded_again(tmp_path: Path, encoder: MiniEncoder) -> None:
    mined(source("nl2bash"), write_sets(tmp_path / "a") / "nl2bash", tmp_path / "out", encoder)
    other = Counting(encoder)
    groups, texts = mined(source("nl2bash"), write_sets(tmp_path / "b", seed=1) / "nl2bash", tmp_path / "out", other)
    assert other.count > 0
    assert {doc_id for group in groups for doc_id in group.doc_ids} == set(texts)


def test_a_set_without_training_questions_is_refused(tmp_path: Path, encoder: MiniEncoder) -> None:
    folder = write_sets(tmp_path, questions=0) / "nl2bash"
    with pytest.raises(InvalidInput, match="no query in its train split"):
        mined(source("nl2bash"), folder, tmp_path / "out", encoder)
