"""Compiled functions work where nothing can be cached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chamfer.core.compilation import compiled

ROOT = Path(__file__).resolve().parents[2]

BUILD_AND_SEARCH = """
import sys
from pathlib import Path
from chamfer.core.types import Document, Query, VectorKind
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.kernels import _numba, _numba_fde, _numba_impacts, _numba_late
from chamfer.models.networks import _numba_clustering
from support_encoders import HashEncoder

modules = (_numba, _numba_fde, _numba_impacts, _numba_late, _numba_clustering)
functions = [function for module in modules for function in vars(module).values() if hasattr(function, "stats")]
cached = [function for function in functions if function.stats.cache_path]
encoder, path = HashEncoder(), Path(sys.argv[1])
documents = [Document("fox", "a fox and grapes"), Document("crow", "a crow and cheese")]
build(documents, path, encoder=encoder, config=BuildConfig(channels=("lexical", "dense")))
with Collection.open(path) as opened:
    lexical, dense = (opened.channels[name].retriever for name in ("lexical", "dense"))
    query = encoder.encode_queries([Query("q", "a crow and cheese")], [VectorKind.DENSE]).dense
    best = [lexical.search(lexical.encode_queries(["cheese"]), 1), dense.search(query, 1)]
    print(len(functions) > 30, len(cached), *(opened.doc_ids(candidates.of(0)[0])[0] for candidates in best))
"""


def test_without_a_writable_cache_directory_a_build_and_its_searches_work(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    environment |= {
        "HOME": "/nonexistent",
        "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator",  # which caches only interactive functions
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests"))),
    }
    process = subprocess.run(
        [sys.executable, "-c", BUILD_AND_SEARCH, str(tmp_path / "c")], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["True", "0", "crow", "crow"]


@pytest.mark.usefixtures("without_home")
def test_without_a_home_directory_nothing_is_cached_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    # as where the installation is read-only
    monkeypatch.setattr("numba.config.CACHE_LOCATOR_CLASSES", "UserWideCacheLocator")

    @compiled()
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8
    assert list(tmp_path.iterdir()) == []
