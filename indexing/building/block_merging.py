"""Merges the blocks of a build into segments, a bounded number of blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chamfer.core.artifact import remove_directory
from chamfer.indexing.collection.segment import Segment, merge_segments, open_segment
from chamfer.indexing.families.family import Family

ReportProgress = Callable[[str, int, int | None], None]
"""Called with a stage, how much of it is done, and the total if it is known."""


@dataclass(frozen=True, slots=True)
class Block:
    """A finished block: a small segment in the folder of blocks."""

    path: Path
    n_documents: int


def merge_blocks(
    out: Path,
    number: int,
    blocks: Sequence[Block],
    segment_documents: int,
    families: Mapping[str, Family],
    report_progress: ReportProgress,
) -> list[Segment]:
    """Merges blocks, in order, into segments of at most `segment_documents` documents of snapshot `number`.

    Only the blocks of one segment are open at a time, so that the number of mappings does not grow with the corpus.
    """
    segments: list[Segment] = []
    total = sum(block.n_documents for block in blocks)
    done = 0
    for position, group in enumerate(_groups(blocks, segment_documents)):
        path = out / "segments" / f"{number:06d}-{position:04d}"
        remove_directory(path)  # left by a writer that died before it committed
        merge_segments(path, [open_segment(block.path) for block in group], families)
        segments.append(open_segment(path))
        done += len(segments[-1])
        report_progress("merge", done, total)
    return segments


def _groups(blocks: Sequence[Block], limit: int) -> Iterator[list[Block]]:
    """Groups consecutive blocks: at most `limit` documents in a group, or a single larger block."""
    group: list[Block] = []
    size = 0
    for block in blocks:
        if group and size + block.n_documents > limit:
            yield group
            group, size = [], 0
        group.append(block)
        size += block.n_documents
    if group:
        yield group
