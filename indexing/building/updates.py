"""Changes to a collection: each writes one new snapshot and swaps the pointer to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from chamfer.core.artifact import remove_directory
from chamfer.core.errors import Conflict, Incompatible
from chamfer.core.protocols import Encoder
from chamfer.core.types import Document
from chamfer.indexing.building.block_merging import merge_blocks
from chamfer.indexing.building.builder import BlockWriter, BuildRun
from chamfer.indexing.collection.segment import Segment, merge_segments, open_segment
from chamfer.indexing.collection.snapshot import BLOCKS, Learnt, Snapshot, open_snapshot
from chamfer.indexing.collection.writer import commit, writer_lock


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """The result of an update. `missing` lists the ids that were to be deleted and did not exist."""

    snapshot: str
    added: int
    deleted: int
    missing: tuple[str, ...] = ()


def add(
    path: Path,
    documents: Iterable[Document],
    *,
    encoder: Encoder | None,
    on_existing: Literal["error", "replace"] = "error",
    run: BuildRun | None = None,
) -> UpdateReport:
    """Adds documents as new segments; with "replace", older documents of the same ids are deleted (upsert).

    After an interruption, the same call resumes. Raises Conflict if an id exists already and is not to be replaced.
    """
    with writer_lock(path):
        snapshot = open_snapshot(path)
        _check_encoder(snapshot, encoder)
        learnt = Learnt(snapshot.codecs, snapshot.recall)
        run = run or BuildRun()
        blocks = BlockWriter(path / BLOCKS, snapshot.config, encoder, run, learnt).write(documents)
        ids = [doc_id for block in blocks for doc_id in _doc_ids(open_segment(block.path))]
        older, deleted = _without(snapshot.segments, ids)
        if deleted and on_existing == "error":
            first = next(i for i in ids if any(_live_row(s, i) >= 0 for s in snapshot.segments))
            raise Conflict(
                f"{deleted} of {len(ids)} ids exist in {path} already, the first is {first!r}; replace these documents "
                "(--replace) or leave them out"
            )
        number = snapshot.number + 1
        segment_documents, families = snapshot.config.segment_documents, snapshot.families()
        newer = merge_blocks(path, number, blocks, segment_documents, families, run.report_progress)
        name = _commit(path, number, snapshot, [*older, *newer])
        remove_directory(path / BLOCKS)
    return UpdateReport(name, len(ids), deleted)


def delete(path: Path, doc_ids: Sequence[str]) -> UpdateReport:
    """Deletes documents by id. Ids that do not exist are reported in `missing`; they are not an error."""
    with writer_lock(path):
        snapshot = open_snapshot(path)
        missing = tuple(i for i in doc_ids if all(_live_row(s, i) < 0 for s in snapshot.segments))
        segments, deleted = _without(snapshot.segments, doc_ids)
        if not deleted:
            return UpdateReport(snapshot.name, 0, 0, missing)
        name = _commit(path, snapshot.number + 1, snapshot, segments)
    return UpdateReport(name, 0, deleted, missing)


def compact(path: Path) -> UpdateReport:
    """Merges small segments and drops deleted rows, without encoding again; writes nothing if nothing would change."""
    with writer_lock(path):
        snapshot = open_snapshot(path)
        groups = _compaction_groups(snapshot.segments, snapshot.config.segment_documents)
        if all(len(group) == 1 and group[0].live is None for group in groups):
            return UpdateReport(snapshot.name, 0, 0)
        number = snapshot.number + 1
        families = snapshot.families()
        segments: list[Segment] = []
        for position, group in enumerate(groups):
            if len(group) == 1 and group[0].live is None:
                segments.append(group[0])
                continue
            target = path / "segments" / f"{number:06d}-{position:04d}"
            remove_directory(target)  # left by a writer that died before it committed
            merge_segments(target, group, families)
            segments.append(open_segment(target))
        dropped = sum(len(s) for s in snapshot.segments) - sum(len(s) for s in segments)
        name = _commit(path, number, snapshot, segments)
    return UpdateReport(name, 0, dropped)


def verify(path: Path) -> Snapshot:
    """Checks every byte of the current snapshot; Corrupt names the first file that differs from what was written."""
    return open_snapshot(path, verify=True)


def _commit(path: Path, number: int, snapshot: Snapshot, segments: Sequence[Segment]) -> str:
    encoder = None
    if snapshot.encoder_name is not None and snapshot.encoder_fingerprint is not None:
        encoder = (snapshot.encoder_name, snapshot.encoder_fingerprint)
    return commit(path, number, snapshot.config, encoder, Learnt(snapshot.codecs, snapshot.recall), segments)


def _check_encoder(snapshot: Snapshot, encoder: Encoder | None) -> None:
    if encoder is not None and snapshot.encoder_fingerprint not in (None, encoder.spec.fingerprint):
        raise Incompatible(
            f"the collection was built with encoder {snapshot.encoder_name!r}, not with {encoder.spec.name!r} "
            f"(fingerprint {encoder.spec.fingerprint[:12]}…); set models.encoder to the one it was built with"
        )


def _doc_ids(segment: Segment) -> list[str]:
    return segment.table.doc_ids(np.arange(len(segment)))


def _live_row(segment: Segment, doc_id: str) -> int:
    row = int(segment.table.rows([doc_id])[0])
    return row if row >= 0 and (segment.live is None or segment.live[row]) else -1


def _without(segments: Sequence[Segment], doc_ids: Sequence[str]) -> tuple[list[Segment], int]:
    """(segments with these ids marked deleted, how many were live); segments left without live rows are dropped."""
    kept, deleted = [], 0
    for segment in segments:
        rows = segment.table.rows(doc_ids)
        rows = np.unique(rows[rows >= 0])
        live = np.ones(len(segment), dtype=bool) if segment.live is None else segment.live.copy()
        n_deleted = int(np.count_nonzero(live[rows]))
        deleted += n_deleted
        live[rows] = False
        if n_deleted:
            segment = replace(segment, live=live)
        if segment.n_live:
            kept.append(segment)
    return kept, deleted


def _compaction_groups(segments: Sequence[Segment], limit: int) -> list[list[Segment]]:
    """Groups consecutive segments that together fit into one, so that rows keep their order."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if groups and sum(s.n_live for s in groups[-1]) + segment.n_live <= limit:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups
