"""Artifacts: they are read as written, and an incomplete one does not exist."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.artifact import (
    FORMAT_VERSION,
    ArrayStream,
    canonical_json,
    digest_of,
    discard_temporaries,
    find_artifact,
    open_artifact,
    remove_directory,
    replace_file,
    write_artifact,
)
from chamfer.core.errors import Conflict, Corrupt, Incompatible, InvalidInput, NotFound


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "a"
    with write_artifact(path, "thing", {"n": 3}) as writer:
        writer.add_array("x.values", np.arange(12, dtype=np.float32).reshape(3, 4))
        writer.add_json("facts", {"b": 1})
    return path


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64),
        np.ones((2, 3), dtype=np.float16),
        np.empty((0, 5), dtype=np.float32),
        np.empty(0, dtype=np.uint64),
        np.array([3.5]),
        np.arange(12).reshape(3, 4).T,
        np.array([True, False]),
    ],
)
def test_arrays_come_back_with_dtype_and_shape(tmp_path: Path, array: np.ndarray) -> None:
    with write_artifact(tmp_path / "a", "thing", {}) as writer:
        writer.add_array("x", array)
    opened = open_artifact(tmp_path / "a", "thing", verify=True).array("x")
    assert opened.dtype == array.dtype
    assert opened.shape == array.shape
    np.testing.assert_array_equal(opened, array)


def test_a_streamed_array_has_the_bytes_of_a_whole_one(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    with write_artifact(tmp_path / "a", "thing", {}) as writer:
        writer.add_array("whole", array)
        writer.add_array("streamed", ArrayStream(array.dtype, array.shape, iter([array[:4], array[4:4], array[4:]])))
    assert (tmp_path / "a" / "whole.npy").read_bytes() == (tmp_path / "a" / "streamed.npy").read_bytes()


def test_a_stream_of_another_length_than_announced_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    stream = ArrayStream(np.dtype(np.float32), (5, 1), [np.ones((2, 1), dtype=np.float32)])
    with (
        pytest.raises(InvalidInput, match="announced with 5 rows and got 2"),
        write_artifact(tmp_path / "a", "thing", {}) as writer,
    ):
        writer.add_array("x", stream)
    assert list(tmp_path.iterdir()) == []


def test_mapped_arrays_cannot_be_written_to(artifact: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_artifact(artifact, "thing").array("x.values")[0, 0] = 1


def test_arrays_are_found_by_prefix(artifact: Path) -> None:
    assert set(open_artifact(artifact, "thing").arrays("x.")) == {"values"}


def test_equal_contents_have_equal_bytes_and_digests(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with write_artifact(tmp_path / name, "thing", {"z": 1, "a": [2]}) as writer:
            writer.add_array("x", np.arange(3))
    assert open_artifact(tmp_path / "a", "thing").digest == open_artifact(tmp_path / "b", "thing").digest


def test_an_artifact_is_never_overwritten(artifact: Path) -> None:
    with pytest.raises(Conflict, match="exists already"), write_artifact(artifact, "thing", {}):
        pass


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with write_artifact(tmp_path / "a", "thing", {}) as writer:
            writer.add_array("x", np.arange(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_writers_are_discarded(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / ".writing-b-1").mkdir()
    (tmp_path / ".writing-b-1" / "x.npy").write_bytes(b"half")
    (tmp_path / ".writing-CURRENT-2").write_text("snap")
    discard_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_directory_without_a_manifest_is_not_an_artifact(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    with pytest.raises(NotFound, match="not a finished Chamfer thing"):
        open_artifact(artifact, "thing")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "x"}', '{"format": 1}', '{"format": 0, "kind": "thing"}', "\x00\x01"]
)
def test_a_garbled_manifest_is_corruption(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(Corrupt, match="not a Chamfer manifest"):
        open_artifact(artifact, "thing")


def test_a_newer_format_and_another_kind_are_incompatible(artifact: Path) -> None:
    with pytest.raises(Incompatible, match="is a thing, expected a snapshot"):
        open_artifact(artifact, "snapshot")
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"format": FORMAT_VERSION + 1}))
    with pytest.raises(Incompatible, match=f"version {FORMAT_VERSION + 1}, this Chamfer reads up to {FORMAT_VERSION}"):
        open_artifact(artifact, "thing")


def test_no_byte_of_a_manifest_can_change_unnoticed(artifact: Path) -> None:
    path = artifact / "manifest.json"
    written = path.read_bytes()
    same = json.loads(written)
    for position in range(len(written)):
        data = bytearray(written)
        data[position] ^= 1 << position % 7
        path.write_bytes(data)
        try:
            open_artifact(artifact, "thing")
        except (Corrupt, Incompatible):
            continue
        assert json.loads(bytes(data)) == same, position  # white space


def test_sizes_are_checked_always_and_bytes_on_request(artifact: Path) -> None:
    path = artifact / "x.values.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_artifact(artifact, "thing")
    with pytest.raises(Corrupt, match="SHA-256"):
        open_artifact(artifact, "thing", verify=True)
    os.truncate(path, 100)
    with pytest.raises(Corrupt, match="100 bytes, the manifest says 176"):
        open_artifact(artifact, "thing")
    path.unlink()
    with pytest.raises(Corrupt, match="is missing"):
        open_artifact(artifact, "thing")


@pytest.mark.parametrize("name", ["../x", ".hidden", "manifest.json", "a/b"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="plain name"), write_artifact(tmp_path / "a", "thing", {}) as writer:
        writer.path(name)


def test_a_small_file_is_replaced_atomically(tmp_path: Path) -> None:
    replace_file(tmp_path / "CURRENT", "one\n")
    replace_file(tmp_path / "CURRENT", "two\n")
    assert (tmp_path / "CURRENT").read_text() == "two\n"
    assert [p.name for p in tmp_path.iterdir()] == ["CURRENT"]


def test_canonical_json_does_not_depend_on_key_order() -> None:
    assert canonical_json({"b": 1, "a": {"d": "ü", "c": 2}}) == '{"a":{"c":2,"d":"ü"},"b":1}'
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_directory_whose_removal_is_interrupted_is_gone_under_its_name(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(path: str, *args: object, **options: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(Killed):
        remove_directory(artifact)
    monkeypatch.undo()
    assert not artifact.exists()
    discard_temporaries(artifact.parent)
    assert list(artifact.parent.iterdir()) == []
    remove_directory(artifact)  # no directory: nothing to do
    assert list(artifact.parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "no manifest", "another kind"])
def test_a_damaged_intermediate_result_is_removed_and_not_reused(artifact: Path, damage: str) -> None:
    assert find_artifact(artifact, "thing") is not None
    if damage == "missing":
        (artifact / "facts.json").unlink()
    elif damage == "truncated":
        os.truncate(artifact / "x.values.npy", 100)
    elif damage == "no manifest":
        (artifact / "manifest.json").unlink()
    assert find_artifact(artifact, "other" if damage == "another kind" else "thing") is None
    assert not artifact.exists()


def test_a_missing_intermediate_result_is_not_removed_as_another_process_may_publish_it_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []
    monkeypatch.setattr("chamfer.core.artifact.remove_directory", removed.append)
    assert find_artifact(tmp_path / "a", "thing") is None
    assert removed == []


def test_of_a_symbolic_link_the_link_is_removed_and_leftover_links_block_no_writer(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").symlink_to(elsewhere)
    remove_directory(folder / "a")
    assert list(folder.iterdir()) == []
    (folder / ".writing-a-1-removed").symlink_to(elsewhere)  # of a process that was killed in between
    discard_temporaries(folder)
    assert list(folder.iterdir()) == []
    assert (elsewhere / "kept").read_text() == "kept"
