"""Writers are killed at random moments: readers find the old or the new snapshot, and the command can be run again."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import support_faults
from support_faults import Writers, contents, fingerprint, run, writers

from chamfer.core.artifact import ArtifactWriter
from chamfer.core.errors import NotFound
from chamfer.indexing.building import block_merging
from chamfer.indexing.building.updates import verify
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.snapshot import CURRENT
from chamfer.indexing.collection.writer import writer_lock

OPERATIONS = ("build", "add", "delete", "compact")


@dataclass(frozen=True)
class Stage:
    """A collection before and after an operation that nothing interrupted, and what a reader finds in them."""

    before: Path
    after: Path

    @cached_property
    def states(self) -> tuple[str, str]:
        return state(self.before), state(self.after)

    @cached_property
    def files(self) -> dict[str, str]:
        return fingerprint(self.after)

    @cached_property
    def documents(self) -> str:
        return contents(self.after, with_name=False)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    """The stage of each operation, one after the other."""
    folder = tmp_path_factory.mktemp("stages")
    before = folder / "empty"
    before.mkdir()
    stage_times = {}
    for operation in OPERATIONS:
        after = folder / operation
        shutil.copytree(before, after)
        run(operation, after)
        stage_times[operation] = Stage(before, after)
        before = after
    return stage_times


@pytest.fixture(scope="module")
def forked() -> Iterator[Writers]:
    with writers() as started:
        yield started


@dataclass
class Kills:
    """What readers found after the kills of one operation."""

    old: int = 0
    new: int = 0
    ended: int = 0  # of the new: the writer had ended before the kill

    @property
    def total(self) -> int:
        return self.old + self.new


def kill_rounds(operation: str, stage: Stage, writers: Writers, folder: Path, rounds: int) -> Kills:
    """Kills `rounds` writers at random moments, every fifth just after the swap of CURRENT, and runs each again."""
    chance = random.Random(f"{operation} {rounds}")
    duration = seconds_of(operation, stage.before, writers, folder)
    kills = Kills()
    for number in range(rounds):
        path = folder / f"{operation}-{number}"
        shutil.copytree(stage.before, path)
        if number % 5 == 4:
            ended = kill_at_the_swap(operation, path, writers, pause=0.005 * chance.random())
        else:
            ended = kill_after(operation, path, writers, 1.1 * chance.random() * duration)
            # The load of the machine changes, and kills must fall into the operation.
            duration *= 0.97 if ended else 1.01
        kills.ended += ended
        check_resumption(operation, path, stage, kills)
        shutil.rmtree(path)
    return kills


def check_resumption(operation: str, path: Path, stage: Stage, kills: Kills) -> None:
    """After a kill the old or the new snapshot is readable; the same command, run again, ends as without a kill."""
    snapshot = state(path)
    assert snapshot in stage.states, f"a mixture after killing {operation}"
    if snapshot == stage.states[1]:
        kills.new += 1
        # A writer may be killed before it removes unreferenced files; the next writer removes them.
        with writer_lock(path):
            pass
        assert without_blocks(path) == stage.files
        run("rebuild" if operation == "build" else operation, path)
    else:
        kills.old += 1
        run(operation, path)
        assert without_blocks(path) == stage.files
    verify(path)
    assert contents(path, with_name=False) == stage.documents
    assert not list(path.rglob(".writing-*"))


def without_blocks(path: Path) -> dict[str, str]:
    """The fingerprint without the blocks of a build, which a writer that dies after its commit leaves to the next."""
    return {name: digest for name, digest in fingerprint(path).items() if not name.startswith(".building")}


def state(path: Path) -> str:
    """What a reader finds: the digest of the contents, or that there is nothing."""
    try:
        return contents(path)
    except NotFound:
        return "nothing"


def seconds_of(operation: str, before: Path, writers: Writers, folder: Path) -> float:
    """How long one unbroken run takes: the shortest of three, as the first may find cold caches."""
    durations = []
    for number in range(3):
        path = folder / f"timing-{operation}-{number}"
        shutil.copytree(before, path)
        begin = time.monotonic()
        writers.start(operation, path)
        assert writers.wait()
        durations.append(time.monotonic() - begin)
        shutil.rmtree(path)
    return min(durations)


def kill_after(operation: str, path: Path, writers: Writers, seconds: float) -> bool:
    """Kills a writer after so many seconds; True if it had ended."""
    pid = writers.start(operation, path)
    time.sleep(seconds)
    return writers.kill(pid)


def kill_at_the_swap(operation: str, path: Path, writers: Writers, pause: float) -> bool:
    """Kills the writer a moment after the pointer has changed, while it tidies up; True if it had ended."""
    pointer = path / CURRENT
    before = pointer.read_bytes() if pointer.exists() else None
    pid = writers.start(operation, path)
    deadline = time.monotonic() + 60
    while (not pointer.exists() or pointer.read_bytes() == before) and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(pause)
    return writers.kill(pid)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_writer_leaves_the_old_or_the_new_snapshot_and_is_run_again(
    operation: str, stages: dict[str, Stage], forked: Writers, tmp_path: Path
) -> None:
    assert kill_rounds(operation, stages[operation], forked, tmp_path, 5).total == 5


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_two_hundred_killed_writers_are_run_again(
    operation: str, stages: dict[str, Stage], forked: Writers, tmp_path: Path
) -> None:
    kills = kill_rounds(operation, stages[operation], forked, tmp_path, 200)
    print(f"{operation}: {kills.old} old, {kills.new} new, of which {kills.ended} had ended")
    assert kills.total == 200
    assert min(kills.old, kills.new) >= 20


class Stop(BaseException):
    """Raised in the middle of a statement, as a kill would stop it; the test itself continues."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_writer_that_dies_while_it_removes_files_can_be_run_again(
    operation: str, stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink
    for survivors in (0, 1, 3, 20):
        path = tmp_path / f"{operation}-{survivors}"
        shutil.copytree(stages[operation].before, path)
        left = survivors

        def dying(*args: Any, **options: Any) -> None:
            nonlocal left
            if not left:
                raise Stop
            left -= 1
            unlink(*args, **options)

        monkeypatch.setattr(os, "unlink", dying)
        with contextlib.suppress(Stop):  # where there are fewer files to remove, it does not die
            run(operation, path)
        monkeypatch.undo()
        check_resumption(operation, path, stages[operation], Kills())


@pytest.mark.parametrize("operation", ["build", "add"])
def test_a_block_with_a_missing_or_truncated_file_is_built_again(
    operation: str, stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / operation
    shutil.copytree(stages[operation].before, path)

    def fail(*args: object, **options: object) -> None:
        raise Stop

    monkeypatch.setattr(block_merging, "merge_segments", fail)
    with pytest.raises(Stop):
        run(operation, path)
    monkeypatch.undo()
    first, second, third, *_ = sorted((path / ".building").iterdir())
    (first / "dense.values.npy").unlink()
    (second / "manifest.json").unlink()
    os.truncate(third / "documents.arrow", 10)
    run(operation, path)
    assert fingerprint(path) == stages[operation].files


def test_a_build_killed_after_every_block_ends_with_the_same_bytes(stages: dict[str, Stage], tmp_path: Path) -> None:
    path = tmp_path / "often"

    def stop_after_one(progress: object) -> None:
        raise Stop

    from support_encoders import HashEncoder

    from chamfer.indexing.building.builder import BuildRun, build

    for attempt in range(20):
        try:
            build(
                support_faults.BUILT,
                path,
                encoder=(encoder := HashEncoder()),
                config=support_faults.CONFIG,
                run=BuildRun(progress=stop_after_one),
            )
        except Stop:
            assert encoder.calls <= 2  # the next block is encoded while one is written
            if attempt < 8:
                # Progress is reported after each block, including finished ones: skip those in the next round.
                continue
            break
    run("build", path)
    assert fingerprint(path) == stages["build"].files


def test_a_full_disk_does_not_damage_the_existing_snapshot(
    stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ArtifactWriter.add_array
    for operation in ("build", "add", "compact"):
        stage = stages[operation]
        for room in (0, 9, 40):
            path = tmp_path / f"{operation}-{room}"
            shutil.copytree(stage.before, path)
            left = room

            def add_array(self: ArtifactWriter, name: str, array: Any) -> None:
                nonlocal left
                if not left:
                    raise OSError(errno.ENOSPC, "No space left on device")
                left -= 1
                written(self, name, array)

            monkeypatch.setattr(ArtifactWriter, "add_array", add_array)
            with pytest.raises(OSError, match="No space left"):
                run(operation, path)
            monkeypatch.undo()
            assert state(path) == stage.states[0]
            assert not list(path.rglob(".writing-*"))
            run(operation, path)
            assert fingerprint(path) == stage.files


def test_a_reader_that_opened_before_keeps_its_snapshot(stages: dict[str, Stage], tmp_path: Path) -> None:
    path = tmp_path / "served"
    shutil.copytree(stages["build"].after, path)
    with Collection.open(path) as old:
        ids = old.doc_ids(range(old.n_rows))
        for operation in ("add", "delete", "compact"):
            run(operation, path)
        assert [d.doc_id for d in old.documents(range(old.n_rows))] == ids
        assert old.snapshot == "snapshot-000001"
    with Collection.open(path) as newest:
        assert newest.snapshot == "snapshot-000004"
