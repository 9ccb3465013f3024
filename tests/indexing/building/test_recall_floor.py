"""The recall floor of a build: what it measures, refuses, records, and that it disturbs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support_encoders import HashEncoder, make_documents
from support_faults import fingerprint

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.indexing.building.builder import BuildConfig, BuildRun, build, overlapped
from chamfer.indexing.building.recall_floor import sampled_queries
from chamfer.indexing.building.updates import add, compact, delete
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.recall_report import ChannelRecall, FloorConfig

DOCUMENTS = [d for d in make_documents(330, seed=9) if d.content][:240]
SMALL_FDE = {"repetitions": 2, "k_sim": 1, "d_proj": 2}
GOOD_FDE = {"repetitions": 20, "k_sim": 4, "d_proj": 8}


def config(parameters: dict[str, object], recall: float = 0.8, channel: str = "fde", depth: int = 20) -> BuildConfig:
    return BuildConfig(
        channels=(channel, "multivector"),
        parameters={channel: parameters},
        block_documents=32,
        segment_documents=128,
        sample_documents=128,
        floor=FloorConfig(recall=recall, depth=depth, queries=30),
    )


def test_an_encoding_below_the_floor_is_refused_with_its_recall_and_better_settings(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        build(DOCUMENTS, tmp_path / "c", encoder=HashEncoder(), config=config(SMALL_FDE, 0.95))
    message = caught.value.detail
    for part in (
        "channel 'fde' finds",
        "in 20 candidates",
        "128 documents",
        "build.floor.recall = 0.95",
        "--recall-floor",
    ):
        assert part in message
    assert "fde.k_sim = 5" in message
    assert not (tmp_path / "c" / "CURRENT").exists()


class NarrowEncoder(HashEncoder):
    """Token vectors in a narrow cone, as those of many late-interaction models: one direction common to all."""

    def _vector(self, word: str) -> np.ndarray:
        common = np.full(16, 1.5, dtype=np.float32)
        vector = super()._vector(word) + common
        return vector / np.linalg.norm(vector)


def test_the_known_failure_on_narrow_token_vectors_is_noticed_and_centring_named(tmp_path: Path) -> None:
    small = {"repetitions": 10, "k_sim": 3, "d_proj": 8}
    build(DOCUMENTS, tmp_path / "wide", encoder=HashEncoder(), config=config(small, 0.55))
    with pytest.raises(InvalidInput, match=r"fde\.centred = true: [67]\d") as caught:
        build(DOCUMENTS, tmp_path / "narrow", encoder=NarrowEncoder(), config=config(small, 0.55))
    assert "below build.floor.recall = 0.55" in caught.value.detail
    build(DOCUMENTS, tmp_path / "centred", encoder=NarrowEncoder(), config=config({**small, "centred": True}, 0.55))


def test_after_a_refusal_the_sample_is_not_encoded_again(tmp_path: Path) -> None:
    encoder = HashEncoder()
    with pytest.raises(InvalidInput):
        build(DOCUMENTS, tmp_path / "c", encoder=encoder, config=config(SMALL_FDE, 0.95))
    before = encoder.calls
    build(DOCUMENTS, tmp_path / "c", encoder=encoder, config=config(GOOD_FDE, 0.5))
    assert encoder.calls == before + 1 + 4  # the queries again, and the blocks beyond the sample


def test_a_floor_of_zero_builds_anyway_and_records_what_was_measured(tmp_path: Path) -> None:
    report = build(DOCUMENTS, tmp_path / "c", encoder=HashEncoder(), config=config(SMALL_FDE, 0.0))
    with Collection.open(tmp_path / "c") as opened:
        measured = opened.recall["fde"]
    assert measured == report.recall["fde"]
    assert measured.recall < 0.9
    assert (measured.documents, measured.queries, measured.depth, measured.made_up) == (128, 30, 20, True)
    manifest = json.loads(next((tmp_path / "c" / "snapshots").glob("*/manifest.json")).read_text())
    assert manifest["body"]["recall"]["fde"]["recall"] == measured.recall


def test_the_recorded_recall_is_that_of_searching_the_sample(tmp_path: Path) -> None:
    queries = [Query(f"q{i}", f"w{i} w{i + 2}") for i in range(25)]
    sample = DOCUMENTS[:128]
    encoder = HashEncoder()
    build(sample, tmp_path / "c", encoder=encoder, config=config(GOOD_FDE, 0), run=BuildRun(queries=queries))
    tokens = encoder.encode_queries(queries, [VectorKind.TOKENS]).tokens
    with Collection.open(tmp_path / "c") as opened:
        exact = opened.channels["multivector"].retriever.search(tokens, 10)
        hits = opened.channels["fde"].retriever.search(tokens, 20)
        held = [np.isin(exact.of(q)[0], hits.of(q)[0]).mean() for q in range(25)]
        assert opened.recall["fde"].recall == pytest.approx(np.mean(held), abs=1e-4)
        assert not opened.recall["fde"].made_up


def test_updates_keep_the_recorded_recall(tmp_path: Path) -> None:
    path = tmp_path / "c"
    build(DOCUMENTS[:160], path, encoder=HashEncoder(), config=config(GOOD_FDE, 0.3))
    with Collection.open(path) as opened:
        measured = dict(opened.recall)
    add(path, DOCUMENTS[160:], encoder=HashEncoder())
    delete(path, [DOCUMENTS[0].doc_id])
    compact(path)
    with Collection.open(path) as opened:
        assert opened.recall == measured


@pytest.mark.parametrize(("channel", "moments"), [("fde", (0, 3, 5, 7, 9)), ("lemur", (2, 6))])
def test_a_build_that_dies_anywhere_resumes_to_the_same_bytes(
    tmp_path: Path, channel: str, moments: tuple[int, ...]
) -> None:
    parameters: dict[str, object] = (
        {"dim": 32, "epochs": 1, "fit_tokens": 200} if channel == "lemur" else dict(GOOD_FDE)
    )
    settings = config(parameters, 0.0, channel)
    build(DOCUMENTS, tmp_path / "whole", encoder=HashEncoder(), config=settings)

    class Stop(BaseException):
        pass

    for moment in moments:
        path = tmp_path / f"broken-{moment}"
        seen = 0

        def stop(progress: object, moment: int = moment) -> None:
            nonlocal seen
            seen += 1
            if seen > moment:
                raise Stop

        with pytest.raises(Stop):
            build(DOCUMENTS, path, encoder=HashEncoder(), config=settings, run=BuildRun(progress=stop))
        build(DOCUMENTS, path, encoder=HashEncoder(), config=settings)
        assert fingerprint(path) == fingerprint(tmp_path / "whole"), moment
        shutil.rmtree(path)


def test_an_empty_corpus_and_documents_without_words_are_built_and_nothing_is_measured(tmp_path: Path) -> None:
    for number, documents in enumerate(([], [Document("a"), Document("b", " ")])):
        report = build(documents, tmp_path / str(number), encoder=HashEncoder(), config=config(GOOD_FDE, 0.9))
        assert report.recall == {}
        assert report.documents == len(documents)


def test_recall_is_extrapolated_to_a_known_size_before_the_rest_is_encoded(tmp_path: Path) -> None:
    settings = config(GOOD_FDE, 0.6)
    build(DOCUMENTS, tmp_path / "sample", encoder=HashEncoder(), config=settings)
    with pytest.raises(InvalidInput, match=r"is expected over 100,000,000"):
        build(DOCUMENTS, tmp_path / "c", encoder=HashEncoder(), config=settings, run=BuildRun(total=100_000_000))


def test_recall_at_a_size_is_that_of_the_equivalent_depth_in_the_sample() -> None:
    measured = ChannelRecall(0.9, 100, 0.5, 1000, 10, True, {"100": 0.9, "50": 0.8, "10": 0.4})
    assert measured.at(1000) == 0.9
    assert measured.at(4000) == 0.8  # 100 (1 / 4)^0.5 = 50
    assert measured.at(9000) == 0.4
    assert measured.at(10**9) == 0.0


def test_sampled_queries_are_stretches_of_documents_and_the_same_every_time() -> None:
    queries = sampled_queries(DOCUMENTS, 40)
    assert queries == sampled_queries(DOCUMENTS, 40)
    contents = [" ".join(d.content.split()) for d in DOCUMENTS]
    for query in queries:
        assert len(query.text.split()) <= 12
        assert any(query.text in content for content in contents)
    assert sampled_queries([Document("a")], 3) == []


def test_impossible_floors_are_refused() -> None:
    for wrong in ({"recall": 1.5}, {"depth": 5}, {"queries": 0}):
        with pytest.raises(InvalidInput, match=r"build\.floor"):
            FloorConfig(**wrong)  # type: ignore[arg-type]


def test_work_overlaps_in_order_and_a_failure_finishes_what_came_before() -> None:
    done: list[int] = []

    def pieces() -> object:
        for number in range(5):
            if number == 4:
                raise OSError("gone")
            yield lambda number=number: done.append(number) or number

    with pytest.raises(OSError, match="gone"):
        for _ in overlapped(pieces()):  # type: ignore[arg-type]
            pass
    assert done == [0, 1, 2, 3]
    assert list(overlapped(iter([lambda: 1, lambda: 2, lambda: 3]))) == [1, 2, 3]
    assert list(overlapped(iter([]))) == []


def test_a_failure_of_the_work_itself_is_raised() -> None:
    def fail() -> int:
        raise InvalidInput("a block cannot be packed")

    with pytest.raises(InvalidInput, match="cannot be packed"):
        list(overlapped(iter([lambda: 1, fail, lambda: 3])))
