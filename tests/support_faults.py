"""A writer in a process of its own, to be killed: `python support_faults.py OPERATION PATH`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from support_encoders import HashEncoder, make_documents  # noqa: E402  # the path comes first

from chamfer.core.artifact import file_digest  # noqa: E402
from chamfer.indexing.build.builder import BuildConfig, build  # noqa: E402
from chamfer.indexing.build.updates import add, compact, delete  # noqa: E402

CONFIG = BuildConfig(block_documents=8, segment_documents=24)
BUILT = make_documents(60, seed=1)
ADDED = make_documents(30, seed=2, first=50)  # ten of them replace older ones
DELETED = [f"d{i}" for i in range(0, 80, 7)]


def run(operation: str, path: Path, pause_seconds: float = 0.0) -> None:
    encoder = HashEncoder(pause_seconds=pause_seconds)
    if operation == "build":
        build(BUILT, path, encoder=encoder, config=CONFIG)
    elif operation == "add":
        add(path, ADDED, encoder=encoder, on_existing="replace")
    elif operation == "delete":
        delete(path, DELETED)
    else:
        compact(path)


def fingerprint(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a collection, by relative name."""
    return {
        str(p.relative_to(path)): file_digest(p) for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def contents(path: Path) -> str:
    """One digest of what a reader sees: snapshot, live documents and what they score."""
    import numpy as np

    from chamfer.core.types import Query, VectorKind
    from chamfer.indexing.collection.collection import Collection

    with Collection.open(path, verify=True) as opened:
        rows = opened.rows([d.doc_id for d in BUILT + ADDED])
        alive = np.unique(rows[rows >= 0])
        assert len(alive) == len(opened)
        out = hashlib.sha256(opened.snapshot.encode())
        for document in opened.documents(alive):
            out.update(
                repr((document.doc_id, document.title, document.text, sorted(document.metadata.items()))).encode()
            )
        query = HashEncoder().encode_queries([Query("q", "w1 w2 w3")], [VectorKind.DENSE])
        found = opened.channels["dense"].retriever.search(query.vectors(VectorKind.DENSE), 100)
        out.update(found.scores.tobytes())
        return out.hexdigest()


if __name__ == "__main__":
    print("begins", flush=True)
    run(sys.argv[1], Path(sys.argv[2]), 0.005)
    print("ended", flush=True)
