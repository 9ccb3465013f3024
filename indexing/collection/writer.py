"""Changes to a collection: the writer lock, and the commit that makes a snapshot current."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.artifact import discard_temporaries, open_artifact, remove_directory, replace_file, write_artifact
from chamfer.core.errors import Conflict, InvalidInput
from chamfer.core.mapped_files import naming_limits
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.indexing.collection.segment import Segment
from chamfer.indexing.collection.snapshot import (
    BLOCKS,
    CURRENT,
    KIND,
    POINTER_DIGITS,
    Learnt,
    add_codecs,
    current_name,
)


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Holds the exclusive writer lock of a collection; the system releases it when the process dies.

    Raises Conflict if another process holds it. An exhausted limit of open files or mappings becomes Unavailable.
    """
    path.mkdir(parents=True, exist_ok=True)
    with naming_limits(path), (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another process is writing to {path}; wait until it has finished") from None
        for folder in (path, path / "segments", path / "snapshots", path / BLOCKS):
            discard_temporaries(folder)
        if (path / CURRENT).exists():
            _remove_unreferenced(path)
        yield


def commit(
    path: Path,
    number: int,
    config: CollectionConfig,
    encoder: tuple[str, str] | None,
    learnt: Learnt,
    segments: Sequence[Segment],
) -> str:
    """Writes snapshot `number` over finished segments and makes it current by swapping CURRENT; returns its name.

    Raises InvalidInput if two live documents share an id. A process that dies earlier leaves everything unchanged.
    """
    _check_unique(segments)
    name = f"snapshot-{number:06d}"
    target = path / "snapshots" / name
    remove_directory(target)  # left by a writer that died before it swapped CURRENT
    body: dict[str, Any] = {
        "config": asdict(config),
        "encoder": None if encoder is None else {"name": encoder[0], "fingerprint": encoder[1]},
        "recall": {channel: asdict(measured) for channel, measured in learnt.recall.items()},
        "segments": [
            {"name": s.name, "digest": s.artifact.digest, "documents": len(s), "live": s.n_live} for s in segments
        ],
    }
    with write_artifact(target, KIND, body) as writer:
        add_codecs(writer, learnt.codecs)
        for segment in segments:
            if segment.live is not None:
                writer.add_array(f"live.{segment.name}", np.packbits(segment.live))
    replace_file(path / CURRENT, f"{name} {open_artifact(target, KIND).digest[:POINTER_DIGITS]}\n")
    _remove_unreferenced(path)
    return name


def _check_unique(segments: Sequence[Segment]) -> None:
    hashes = [np.empty(0, dtype=np.uint64), *(s.table.hashes_of(s.live_rows()) for s in segments)]
    flat = np.sort(np.concatenate(hashes))
    duplicates = flat[:-1][flat[1:] == flat[:-1]]
    if not len(duplicates):
        return
    ids: list[str] = []
    for segment in segments:
        rows = segment.live_rows()
        ids += segment.table.doc_ids(rows[np.isin(segment.table.hashes_of(rows), duplicates)])
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise InvalidInput(f"document id {repeated[0]!r} was used twice ({len(repeated)} such ids); ids are unique")


def _remove_unreferenced(path: Path) -> None:
    """Removes snapshots beyond those to keep, and segments of no kept snapshot. Open readers keep their mappings."""
    current = current_name(path)
    folder = path / "snapshots"
    names = sorted(p.name for p in folder.glob("snapshot-*"))
    keep = int(open_artifact(folder / current, KIND).body["config"]["keep_snapshots"])
    kept = [name for name in names if name <= current][-keep:]
    for name in names:
        if name not in kept:
            remove_directory(folder / name)
    referenced = {entry["name"] for name in kept for entry in open_artifact(folder / name, KIND).body["segments"]}
    for segment in sorted((path / "segments").glob("[!.]*")):
        if segment.name not in referenced:
            remove_directory(segment)
