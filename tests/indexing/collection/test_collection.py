"""Collections: building, opening, updates, and errors for damaged files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support_encoders import HashEncoder, make_documents
from support_faults import BUILT, CONFIG, fingerprint

from chamfer.core.artifact import open_artifact
from chamfer.core.errors import ChamferError, Conflict, Corrupt, Incompatible, InvalidInput, NotFound
from chamfer.core.types import Document, VectorKind
from chamfer.indexing.building.builder import BuildConfig, BuildProgress, BuildRun, build
from chamfer.indexing.building.updates import add, compact, delete, verify
from chamfer.indexing.collection.arrow_files import read_batches
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.documents import DocumentTable
from chamfer.indexing.collection.filters import parse_condition
from chamfer.indexing.collection.snapshot import Snapshot
from chamfer.indexing.collection.writer import writer_lock

ENCODER = HashEncoder()


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    path = tmp_path / "collection"
    build(BUILT, path, encoder=ENCODER, config=CONFIG)
    return path


def live_ids(path: Path) -> set[str]:
    with Collection.open(path) as opened:
        rows = np.concatenate(
            [start + s.live_rows() for start, s in zip(opened._starts, opened.segments, strict=False)]
        )
        return set(opened.doc_ids(rows))


def only_file(path: Path, name: str) -> Path:
    return sorted((path / "segments").glob(f"*/{name}"))[0]


def test_every_document_comes_back_as_it_went_in(collection: Path) -> None:
    with Collection.open(collection) as opened:
        rows = opened.rows([d.doc_id for d in BUILT])
        assert np.all(rows >= 0)
        assert opened.documents(rows) == BUILT
        assert len(opened) == len(BUILT) == opened.n_rows
        assert len(opened.segments) == 3


def test_an_unknown_id_has_row_minus_one(collection: Path) -> None:
    with Collection.open(collection) as opened:
        assert opened.rows(["d1", "nobody", ""]).tolist() == [1, -1, -1]


def test_stored_dense_vectors_are_the_encoders(collection: Path) -> None:
    with Collection.open(collection) as opened:
        expected = ENCODER.encode_documents(BUILT, [VectorKind.DENSE]).dense
        retriever = opened.channels["dense"].retriever
        assert expected is not None
        np.testing.assert_array_equal(retriever.vectors(np.arange(60)).values, expected.values)  # type: ignore[attr-defined]


def test_a_resumed_build_encodes_only_what_is_missing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build(BUILT, whole, encoder=ENCODER, config=CONFIG)

    def documents_with_a_fault() -> object:
        yield from BUILT[:40]
        raise OSError("the corpus went away")

    with pytest.raises(OSError, match="went away"):
        build(documents_with_a_fault(), broken, encoder=ENCODER, config=CONFIG)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="was begun here and not finished"):
        Collection.open(broken)
    encoder = HashEncoder()
    report = build(BUILT, broken, encoder=encoder, config=CONFIG)
    assert report.reused_blocks == 5
    assert encoder.calls == 3
    assert fingerprint(broken) == fingerprint(whole)


def test_a_changed_corpus_recomputes_only_changed_blocks(tmp_path: Path) -> None:
    path = tmp_path / "c"
    changed = [*BUILT[:20], Document("d20", "another text"), *BUILT[21:]]

    def fault() -> object:
        yield from BUILT[:56]
        raise OSError

    with pytest.raises(OSError):
        build(fault(), path, encoder=ENCODER, config=CONFIG)  # type: ignore[arg-type]
    assert build(changed, path, encoder=ENCODER, config=CONFIG).reused_blocks == 6
    with Collection.open(path) as opened:
        assert opened.documents([20])[0].text == "another text"


def test_progress_counts_documents(tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    build(BUILT, tmp_path / "c", encoder=ENCODER, config=CONFIG, run=BuildRun(total=60, progress=seen.append))
    encoded = [p.done for p in seen if p.stage == "encode"]
    assert encoded == [8, 16, 24, 32, 40, 48, 56, 60]
    assert seen[-1] == BuildProgress("merge", 60, 60)


def test_building_over_a_collection_needs_replace(collection: Path) -> None:
    with pytest.raises(Conflict, match="--replace"):
        build(BUILT, collection, encoder=ENCODER, config=CONFIG)
    report = build(BUILT[:5], collection, encoder=ENCODER, config=CONFIG, replace=True)
    assert report.snapshot == "snapshot-000002"
    assert live_ids(collection) == {d.doc_id for d in BUILT[:5]}


def test_an_id_used_twice_is_refused_across_blocks_and_nothing_is_served(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'d3' was used twice"):
        build([*BUILT, Document("d3", "again")], tmp_path / "c", encoder=ENCODER, config=CONFIG)
    with pytest.raises(NotFound):
        Collection.open(tmp_path / "c")


def test_an_empty_collection_is_legal(tmp_path: Path) -> None:
    report = build([], tmp_path / "c", encoder=ENCODER, config=CONFIG)
    assert report.documents == 0
    with Collection.open(tmp_path / "c") as opened:
        assert len(opened) == 0
        assert opened.rows(["x"]).tolist() == [-1]
        assert opened.documents([]) == []
    assert add(tmp_path / "c", BUILT[:3], encoder=ENCODER).added == 3
    assert live_ids(tmp_path / "c") == {"d0", "d1", "d2"}


def test_truncated_documents_are_counted_and_survive_merging(tmp_path: Path) -> None:
    short = HashEncoder(limit=3)
    report = build(BUILT, tmp_path / "c", encoder=short, config=CONFIG)
    expected = int(short.encode_documents(BUILT, []).truncated.sum())
    assert report.truncated == expected > 0
    with Collection.open(tmp_path / "c") as opened:
        assert opened.n_truncated == expected


def test_a_channel_without_its_encoder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no encoder"):
        build(BUILT, tmp_path / "c", encoder=None, config=CONFIG)
    lexical = BuildConfig(channels=("lexical",))
    assert build(BUILT, tmp_path / "c", encoder=None, config=lexical).documents == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("dense", "lexcal")}, "did you mean 'lexical'"),
        ({"channels": ("lexical",), "parameters": {"lexical": {"k": 1.2}}}, "lexical.k"),
        ({"channels": ("lexical",), "parameters": {"lexical": {"b": 3.0}}}, "0 <= b <= 1"),
        ({"channels": ("lexical",), "parameters": {"lexical": {"analysis": {"language": "klingon"}}}}, "klingon"),
        ({"channels": ("dense",), "parameters": {"dense": {"storage": "int3"}}}, "float32"),
    ],
)
def test_invalid_configurations_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build(BUILT, tmp_path / "c", encoder=ENCODER, config=BuildConfig(**options))  # type: ignore[arg-type]


def test_adding_refuses_known_ids_unless_they_are_replaced(collection: Path) -> None:
    newer = [Document("d1", "new text"), Document("d100", "brand new")]
    with pytest.raises(Conflict, match="'d1'"):
        add(collection, newer, encoder=ENCODER)
    assert len(live_ids(collection)) == 60
    report = add(collection, newer, encoder=ENCODER, on_existing="replace")
    assert (report.added, report.deleted) == (2, 1)
    with Collection.open(collection) as opened:
        assert len(opened) == 61
        assert opened.documents(opened.rows(["d1"]))[0].text == "new text"


def test_deleting_reports_missing_ids(collection: Path) -> None:
    report = delete(collection, ["d0", "nobody", "d59"])
    assert (report.deleted, report.missing) == (2, ("nobody",))
    assert live_ids(collection) == {d.doc_id for d in BUILT} - {"d0", "d59"}
    before = fingerprint(collection)
    assert delete(collection, ["d0"]).deleted == 0
    assert fingerprint(collection) == before


def test_deleting_everything_leaves_an_empty_collection(collection: Path) -> None:
    delete(collection, [d.doc_id for d in BUILT])
    with Collection.open(collection) as opened:
        assert len(opened) == opened.n_rows == 0


def test_compaction_keeps_the_documents_and_drops_deleted_rows(collection: Path) -> None:
    delete(collection, [f"d{i}" for i in range(0, 60, 2)])
    expected = live_ids(collection)
    report = compact(collection)
    assert report.deleted == 30
    assert live_ids(collection) == expected
    with Collection.open(collection) as opened:
        assert opened.n_rows == len(opened) == 30
    before = fingerprint(collection)
    compact(collection)
    assert fingerprint(collection) == before


def test_a_compacted_collection_scores_as_one_built_from_the_survivors(collection: Path, tmp_path: Path) -> None:
    delete(collection, [f"d{i}" for i in range(0, 60, 3)])
    survivors = [d for i, d in enumerate(BUILT) if i % 3]
    fresh = tmp_path / "fresh"
    build(survivors, fresh, encoder=ENCODER, config=CONFIG)
    for state in ("with holes", "compacted"):
        if state == "compacted":
            compact(collection)
        with Collection.open(collection) as a, Collection.open(fresh) as b:
            for name in ("dense", "multivector", "lexical"):
                results = []
                for c in (a, b):
                    retriever = c.channels[name].retriever
                    kind = c.channels[name].family.kind
                    texts = ["w1 w2", "w3 title"]
                    if kind is None:
                        queries = retriever.encode_queries(texts)  # type: ignore[attr-defined]
                    else:
                        documents = [Document("q", t) for t in texts]
                        queries = ENCODER.encode_documents(documents, [kind]).vectors(kind)
                    hits = retriever.search(queries, 10)
                    results.append([(c.doc_ids(hits.of(i)[0]), hits.of(i)[1].tolist()) for i in range(2)])
                assert results[0] == results[1], (state, name)


def test_old_snapshots_are_removed_after_the_ones_to_keep(collection: Path) -> None:
    for i in range(4):
        delete(collection, [f"d{i}"])
    assert sorted(p.name for p in (collection / "snapshots").iterdir()) == ["snapshot-000004", "snapshot-000005"]


def test_a_second_writer_is_refused_at_once(collection: Path) -> None:
    with writer_lock(collection), pytest.raises(Conflict, match="another process"):
        delete(collection, ["d1"])


def test_another_encoder_is_an_error_not_a_bad_ranking(collection: Path) -> None:
    other = HashEncoder(name="other")
    with pytest.raises(Incompatible, match="built with encoder 'hash'"):
        Collection.open(collection, encoder_fingerprint=other.spec.fingerprint)
    with pytest.raises(Incompatible, match="built with encoder 'hash'"):
        add(collection, [Document("x", "y")], encoder=other)


def test_a_flipped_bit_is_found_by_verify(collection: Path) -> None:
    path = only_file(collection, "dense.values.npy")
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with Collection.open(collection) as opened:
        assert len(opened) == 60
    with pytest.raises(Corrupt, match=r"dense\.values\.npy has SHA-256"):
        verify(collection)


def test_damage_to_an_arrow_file_is_named_even_where_pyarrow_calls_it_an_io_error(collection: Path) -> None:
    path = only_file(collection, "documents.arrow")
    written = path.read_bytes()
    errors: list[Corrupt] = []
    for at in range(0, len(written), 31):
        path.write_bytes(written[:at] + bytes([written[at] ^ 0x80]) + written[at + 1 :])
        try:  # a build opens its blocks like this, without a check of digests
            read_batches(open_artifact(path.parent, "segment"), path.name)
        except Corrupt as error:
            errors.append(error)
    assert all("documents.arrow is not a readable Arrow file" in error.detail for error in errors)
    assert any(type(error.__cause__) is OSError for error in errors)


def test_a_truncated_file_is_found_at_opening(collection: Path) -> None:
    path = only_file(collection, "documents.arrow")
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(Corrupt, match=r"documents\.arrow has \d+ bytes, the manifest says \d+"):
        Collection.open(collection)


def test_a_missing_file_is_found_at_opening(collection: Path) -> None:
    only_file(collection, "lexical.offsets.npy").unlink()
    with pytest.raises(Corrupt, match=r"lexical\.offsets\.npy is missing"):
        Collection.open(collection)


def test_a_missing_segment_is_corruption_and_not_an_empty_answer(collection: Path) -> None:
    shutil.rmtree(sorted((collection / "segments").iterdir())[1])
    with pytest.raises(Corrupt, match="segments"):
        Collection.open(collection)


def test_a_newer_format_is_refused_by_number(collection: Path) -> None:
    path = collection / "snapshots" / "snapshot-000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["format"] = 99
    path.write_text(json.dumps(manifest))
    with pytest.raises(Incompatible, match="format version 99"):
        Collection.open(collection)


def test_a_segment_of_another_build_is_not_mixed_in(collection: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build(make_documents(60, seed=9), other, encoder=ENCODER, config=CONFIG)
    name = sorted((collection / "segments").iterdir())[0].name
    shutil.rmtree(collection / "segments" / name)
    shutil.copytree(other / "segments" / name, collection / "segments" / name)
    with pytest.raises(Corrupt, match="not the one that snapshot-000001 was made with"):
        Collection.open(collection)


def test_any_damage_to_a_file_is_an_error_that_names_it(collection: Path, tmp_path: Path) -> None:
    chance = random.Random(5)
    first, *_ = sorted((collection / "segments").iterdir())
    folders = (collection, first, collection / "snapshots" / "snapshot-000001")
    files = [p for folder in folders for p in sorted(folder.iterdir()) if p.is_file() and p.name != ".lock"]
    for file in (p.relative_to(collection) for p in files):
        written = (collection / file).read_bytes()
        flipped = bytearray(written)
        flipped[chance.randrange(len(written))] ^= 1 << chance.randrange(8)
        for damaged in (bytes(flipped), bytes(len(written)), written[: chance.randrange(len(written))], None):
            path = tmp_path / "damaged"
            shutil.copytree(collection, path)
            (path / file).unlink()
            if damaged is not None:
                (path / file).write_bytes(damaged)
            with contextlib.suppress(Corrupt, Incompatible):  # and nothing else
                Collection.open(path).close()
            with pytest.raises((Corrupt, Incompatible), match=re.escape(file.parent.name or file.name)):
                verify(path)
            shutil.rmtree(path)


def test_a_lost_pointer_is_not_an_empty_folder(collection: Path) -> None:
    (collection / "CURRENT").unlink()
    with pytest.raises(Corrupt, match=r"CURRENT is missing.*echo snapshot-000001"):
        Collection.open(collection)
    with pytest.raises(Corrupt, match="CURRENT is missing"):  # and does not build over it
        build(make_documents(3), collection, encoder=ENCODER, config=CONFIG)
    (collection / "CURRENT").write_text("snapshot-000001\n")  # as its message says
    with Collection.open(collection) as opened:
        assert len(opened) == 60


def test_a_pointer_that_changed_to_an_older_snapshot_is_noticed(collection: Path) -> None:
    delete(collection, ["d0"])
    text = (collection / "CURRENT").read_text()
    assert text.startswith("snapshot-000002 ")
    (collection / "CURRENT").write_text(text.replace("000002", "000001"))
    with pytest.raises(Corrupt, match="points to snapshot-000001 with digest"):
        Collection.open(collection)


def test_a_garbled_pointer_is_named(collection: Path) -> None:
    (collection / "CURRENT").write_bytes(b"\xff\x00")
    with pytest.raises(Corrupt, match="CURRENT"):
        Collection.open(collection)


def test_a_folder_without_a_collection_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no collection"):
        Collection.open(tmp_path)


def test_a_full_disk_in_the_middle_leaves_nothing_half_written(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chamfer.core.artifact

    before = fingerprint(collection)
    calls = iter(range(1000))

    def full(self: object, name: str, array: object) -> None:
        if next(calls) == 9:
            raise OSError(28, "No space left on device")
        original(self, name, array)  # type: ignore[arg-type]

    original = chamfer.core.artifact.ArtifactWriter.add_array
    monkeypatch.setattr(chamfer.core.artifact.ArtifactWriter, "add_array", full)
    with pytest.raises(OSError, match="No space left"):
        add(collection, make_documents(30, seed=3, first=200), encoder=ENCODER)
    monkeypatch.undo()
    after = {k: v for k, v in fingerprint(collection).items() if not k.startswith(".building")}
    assert after == before
    assert add(collection, make_documents(30, seed=3, first=200), encoder=ENCODER).added == 30


def test_readers_never_see_a_mixture_while_a_writer_works(collection: Path) -> None:
    failures: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with Collection.open(collection) as opened:
                    ids = opened.doc_ids(range(opened.n_rows))
                    if len(opened.documents(range(opened.n_rows))) != len(ids):
                        failures.append("documents and ids differ")
            except ChamferError as error:
                failures.append(error.detail)

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(6):
        add(collection, make_documents(10, seed=i, first=100 + 10 * i), encoder=ENCODER)
        delete(collection, [f"d{100 + 10 * i}"])
        compact(collection)
    stop.set()
    thread.join()
    assert failures == []
    assert len(live_ids(collection)) == 60 + 54


def test_filters_cover_all_segments(collection: Path) -> None:
    with Collection.open(collection) as opened:
        mask = opened.allowed(parse_condition({"field": "year", "gte": 1950}))
        assert mask is not None
        expected = [d.metadata["year"] >= 1950 for d in BUILT]
        assert mask.tolist() == expected
        assert opened.allowed(None) is None


def test_a_snapshot_that_vanishes_while_it_is_opened_gives_the_newer_one(collection: Path) -> None:
    class Interrupted(Collection):
        attempts = 0

        def __init__(self, path: Path, snapshot: Snapshot) -> None:
            Interrupted.attempts += 1
            if Interrupted.attempts == 1:  # the documents of the old segments are open, their channels are not
                for _ in range(CONFIG.keep_snapshots):
                    build(BUILT[:5], path, encoder=ENCODER, config=CONFIG, replace=True)
            super().__init__(path, snapshot)

    with Interrupted.open(collection) as opened:
        assert opened.snapshot == "snapshot-000003"
        assert len(opened) == 5
    assert Interrupted.attempts == 2


@pytest.mark.parametrize("read", [DocumentTable.documents, DocumentTable.doc_ids])
def test_reading_documents_costs_the_same_in_a_large_segment(
    tmp_path: Path, read: Callable[[DocumentTable, list[int]], list[object]]
) -> None:
    config = BuildConfig(channels=("lexical",))
    table_bytes, peaks = [], []
    for n in (1_500, 15_000):
        build([Document(f"d{i}", "word " * 30) for i in range(n)], tmp_path / str(n), encoder=None, config=config)
        default = pa.default_memory_pool()
        with Collection.open(tmp_path / str(n)) as opened:
            [segment] = opened.segments
            table_bytes.append((segment.artifact.path / "documents.arrow").stat().st_size)
            pa.set_memory_pool(counting := pa.proxy_memory_pool(default))
            try:
                assert len(read(segment.table, [3, n // 2, n - 1])) == 3
            finally:
                pa.set_memory_pool(default)
            peaks.append(counting.max_memory())
    assert table_bytes[1] > 9 * table_bytes[0]
    assert peaks[1] <= peaks[0] + 1024
    assert peaks[1] < table_bytes[1] / 10


def test_reading_a_collection_imports_no_build_code() -> None:
    loaded = "[m for m in sys.modules if m.startswith('chamfer.indexing.building')]"
    code = f"import sys, chamfer.indexing.collection.collection; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
