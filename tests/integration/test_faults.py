"""Writers are killed at random moments: what is served is the old or the new snapshot, and nothing is lost."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import support_faults
from support_faults import contents, fingerprint, run

from chamfer.core.artifact import ArtifactWriter
from chamfer.core.errors import NotFound
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.snapshot import CURRENT
from chamfer.indexing.collection.writer import writer_lock

OPERATIONS = ("build", "add", "delete", "compact")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """operation -> (collection before it, collection after it), made without interruption."""
    folder = tmp_path_factory.mktemp("stages")
    before = folder / "empty"
    before.mkdir()
    out = {}
    for operation in OPERATIONS:
        after = folder / operation
        shutil.copytree(before, after)
        run(operation, after)
        out[operation] = (before, after)
        before = after
    return out


def kill_rounds(stages: dict[str, tuple[Path, Path]], folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Kills `rounds` writers; returns how often the old and the new snapshot were found afterwards."""
    chance = random.Random(seed)
    took = {operation: seconds_of(operation, stages[operation][0], folder) for operation in OPERATIONS}
    seen = {"old": 0, "new": 0}
    for number in range(rounds):
        operation = OPERATIONS[number % len(OPERATIONS)]
        before, after = stages[operation]
        path = folder / f"round-{number}"
        shutil.copytree(before, path)
        if number % 5 == 4:
            kill_at_the_swap(operation, path)
        else:
            kill_after(operation, path, 1.2 * chance.random() * took[operation])
        found = state(path)
        assert found in {state(before), state(after)}, f"round {number}: a mixture after killing {operation}"
        seen["new" if found == state(after) else "old"] += 1
        if found != state(after):
            run(operation, path)
        else:  # perhaps killed before it removed what no snapshot names any more: the next writer does
            with writer_lock(path):
                pass
        assert {k: v for k, v in fingerprint(path).items() if not k.startswith(".building")} == fingerprint(after), (
            number
        )
        shutil.rmtree(path)
    return seen


def state(path: Path) -> str:
    """What a reader finds: the digest of the contents, or that there is nothing."""
    try:
        return contents(path)
    except NotFound:
        return "nothing"


def writer(operation: str, path: Path) -> subprocess.Popen[str]:
    """A process that is about to write: its imports are behind it."""
    command = [sys.executable, support_faults.__file__, operation, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def seconds_of(operation: str, before: Path, folder: Path) -> float:
    """How long one unbroken run writes: the shorter of two, as the first may find cold caches."""
    took = []
    for number in range(2):
        path = folder / f"timing-{operation}-{number}"
        shutil.copytree(before, path)
        with writer(operation, path) as process:
            begin = time.monotonic()
            assert process.stdout is not None
            assert process.stdout.readline() == "ended\n"
            took.append(time.monotonic() - begin)
        assert process.returncode == 0
        shutil.rmtree(path)
    return min(took)


def kill_after(operation: str, path: Path, seconds: float) -> None:
    process = writer(operation, path)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)


def kill_at_the_swap(operation: str, path: Path) -> None:
    """Kills the writer as soon as the pointer is seen to have changed, before it has tidied up."""
    pointer = path / CURRENT
    before = pointer.read_bytes() if pointer.exists() else None
    process = writer(operation, path)
    while process.poll() is None and (not pointer.exists() or pointer.read_bytes() == before):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_writers_leave_the_old_or_the_new_snapshot(stages: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    seen = kill_rounds(stages, tmp_path, 8, seed=11)
    assert sum(seen.values()) == 8


@pytest.mark.slow
def test_a_hundred_killed_writers_leave_the_old_or_the_new_snapshot(
    stages: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    seen = kill_rounds(stages, tmp_path, 100, seed=2026)
    print(seen)
    assert seen["old"] > 30
    assert seen["new"] >= 20


def test_a_build_dies_after_every_block_and_ends_with_the_same_bytes(
    stages: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = tmp_path / "often"

    class Stop(BaseException):
        pass

    def stop_after_one(progress: object) -> None:
        raise Stop

    from support_encoders import HashEncoder

    from chamfer.indexing.build.builder import BuildRun, build

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
                # Progress is told after each block, finished ones included; look past them next time.
                continue
            break
    run("build", path)
    assert fingerprint(path) == fingerprint(stages["build"][1])


def test_a_disk_that_fills_up_costs_nothing_that_was_there(
    stages: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ArtifactWriter.add_array
    for operation in ("build", "add", "compact"):
        before, after = stages[operation]
        for room in (0, 9, 40):
            path = tmp_path / f"{operation}-{room}"
            shutil.copytree(before, path)
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
            assert state(path) == state(before)
            assert not list(path.rglob(".writing-*"))
            run(operation, path)
            assert fingerprint(path) == fingerprint(after)


def test_a_reader_that_opened_before_keeps_its_snapshot(stages: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path = tmp_path / "served"
    shutil.copytree(stages["build"][1], path)
    with Collection.open(path) as old:
        ids = old.doc_ids(range(old.n_rows))
        for operation in ("add", "delete", "compact"):
            run(operation, path)
        assert [d.doc_id for d in old.documents(range(old.n_rows))] == ids
        assert old.snapshot == "snapshot-000001"
    with Collection.open(path) as newest:
        assert newest.snapshot == "snapshot-000004"
