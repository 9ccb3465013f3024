"""Descriptors do not grow with segments or blocks: collections are built and served under a low `ulimit -n`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
LIMIT = 64  # a segment of three channels has 20 files, so that four open segments would reach it

PRELUDE = f"""
import os, resource, sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}]
from support_encoders import HashEncoder, make_documents
from chamfer.core.errors import Unavailable
from chamfer.core.types import VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.building.updates import add, compact, delete, verify
from chamfer.indexing.collection.collection import Collection

path, encoder = Path(sys.argv[1]), HashEncoder()
n_open = lambda: len(os.listdir("/proc/self/fd"))
limit_to = lambda n: resource.setrlimit(resource.RLIMIT_NOFILE, (n, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


def check_in_child(code: str, path: Path) -> None:
    command = [sys.executable, "-c", PRELUDE + code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_many_small_adds_and_their_compaction_work_under_a_low_limit(tmp_path: Path) -> None:
    code = f"""
build(make_documents(3), path, encoder=encoder)
limit_to({LIMIT})
for number in range(12):
    add(path, make_documents(1, first=10 + number), encoder=encoder)
before = n_open()
with Collection.open(path) as opened:
    assert len(opened.segments) == 13
    assert n_open() == before, (n_open(), before)
    assert len(opened.documents(range(15))) == 15
    vectors = encoder.encode_documents(make_documents(2), [VectorKind.DENSE]).dense
    assert opened.channels["dense"].retriever.search(vectors, 15).depth == 15
delete(path, ["d1"])
compact(path)
verify(path)
with Collection.open(path) as opened:
    assert (len(opened.segments), len(opened)) == (1, 14)
"""
    check_in_child(code, tmp_path / "c")


def test_a_build_of_many_blocks_works_under_a_low_limit(tmp_path: Path) -> None:
    code = f"""
limit_to({LIMIT})
config = BuildConfig(channels=("lexical", "dense"), block_documents=2)
assert build(make_documents(60), path, encoder=encoder, config=config).blocks == 30
verify(path)
"""
    check_in_child(code, tmp_path / "c")


def test_an_exhausted_limit_is_named_by_every_operation_and_damages_nothing(tmp_path: Path) -> None:
    code = """
build(make_documents(3), path, encoder=encoder)
limit_to(n_open() - 1)  # the descriptor that lists the others is closed again
operations = (
    lambda: Collection.open(path),
    lambda: verify(path),
    lambda: add(path, make_documents(1, first=10), encoder=encoder),
    lambda: delete(path, ["d1"]),
    lambda: compact(path),
    lambda: build(make_documents(3), path, encoder=encoder, replace=True),
)
messages = []
for operation in operations:
    try:
        operation()
    except Unavailable as error:
        messages.append(error.detail)
limit_to(256)
assert len(messages) == len(operations), messages
for message in messages:
    assert "may open" in message and "ulimit -n" in message, message
verify(path)
"""
    check_in_child(code, tmp_path / "c")
