"""Collections written by every format version that is still read, one folder per version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chamfer.core.artifact import FORMAT_VERSION, MANIFEST, OLDEST_FORMAT
from chamfer.core.errors import Incompatible
from chamfer.core.types import Document
from chamfer.indexing.building.updates import add, compact
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.filters import parse_condition

STORED = sorted(path for path in Path(__file__).parent.iterdir() if path.name.isdigit())


def test_every_format_version_that_is_read_is_kept() -> None:
    assert [int(path.name) for path in STORED] == list(range(OLDEST_FORMAT, FORMAT_VERSION + 1))


def test_an_older_format_is_reported_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "c"
    shutil.copytree(STORED[0], path)
    manifest = path / "snapshots" / "snapshot-000002" / MANIFEST
    manifest.write_text(manifest.read_text().replace(f'"format": {OLDEST_FORMAT}', f'"format": {OLDEST_FORMAT - 1}'))
    with pytest.raises(Incompatible, match=f"reads from {OLDEST_FORMAT}; build it again"):
        Collection.open(path)


@pytest.mark.parametrize("stored", STORED, ids=lambda path: f"format {path.name}")
def test_a_stored_collection_is_read_verified_and_extended(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    shutil.copytree(stored, path)
    with Collection.open(path, verify=True) as opened:
        assert opened.snapshot == "snapshot-000002"
        assert (len(opened), opened.n_rows) == (2, 3)  # one was deleted
        retriever = opened.channels["lexical"].retriever
        hits = retriever.search(retriever.encode_queries(["cheese of the heron"]), 3)  # type: ignore[attr-defined]
        [document] = opened.documents(hits.of(0)[0])
        assert document == Document(
            "crow", "A crow dropped a piece of cheese.", "The crow", {"lang": "en", "year": 1901}
        )
        allowed = opened.allowed(parse_condition({"field": "year", "lt": 1900}))
        assert allowed is not None
        assert opened.doc_ids(allowed.nonzero()[0]) == ["fox"]
    add(path, [Document("wolf", "The wolf saw a cheese in the water.")], encoder=None)
    compact(path)
    with Collection.open(path, verify=True) as opened:
        assert len(opened) == opened.n_rows == 3
