"""From documents to a collection: blocks are encoded once and kept, then merged into segments (ADR 1).

A block is named by the digest of its documents, the configuration and the encoder. A build that was killed finds its
finished blocks and goes on; what it makes has the same bytes as an unbroken one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from chamfer.artifact import MANIFEST, canonical_json, digest_of
from chamfer.errors import Conflict, InvalidInput
from chamfer.protocols import Encoder
from chamfer.types import Document, VectorKind
from indexing.family import Family
from indexing.segment import Segment, merge_segments, open_segment, write_segment
from indexing.snapshot import BLOCKS, CURRENT, CollectionConfig, commit, current_name, writer_lock

BuildConfig = CollectionConfig


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build stands: `done` of `total` (None if unknown) documents in this stage."""

    stage: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built. `reused_blocks` came from an earlier attempt; `truncated` documents were cut by the encoder."""

    snapshot: str
    documents: int
    truncated: int
    n_bytes: int
    seconds: float
    blocks: int
    reused_blocks: int


Progress = Callable[[BuildProgress], None]


def build(
    documents: Iterable[Document],
    out: Path,
    *,
    encoder: Encoder | None,
    config: BuildConfig | None = None,
    replace: bool = False,
    total: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Builds a collection at `out` from documents; run again after an interruption, it goes on.

    Raises Conflict if there is a collection already (unless `replace`: then it becomes a new snapshot) or another
    writer; InvalidInput if a channel needs an encoder and there is none, or an id was used twice.
    """
    started = time.monotonic()
    settings = config or BuildConfig()
    with writer_lock(out):
        exists = (out / CURRENT).exists()
        if exists and not replace:
            raise Conflict(f"{out} holds a collection already; add to it, or replace it (--replace)")
        number = 1 + (int(current_name(out).rpartition("-")[2]) if exists else 0)
        blocks = BlockWriter(out / BLOCKS, settings, encoder, progress)
        kept = blocks.write(documents, total)
        segments = merge_blocks(out, number, kept, settings, progress)
        name = commit(out, number, settings, encoder_identity(encoder), segments)
        shutil.rmtree(out / BLOCKS, ignore_errors=True)
    return BuildReport(
        name,
        sum(len(segment) for segment in segments),
        sum(segment.n_truncated for segment in segments),
        sum(segment.artifact.n_bytes for segment in segments),
        time.monotonic() - started,
        len(kept),
        blocks.reused,
    )


class BlockWriter:
    """Encodes documents block by block into a folder, reusing blocks that are already there."""

    def __init__(
        self, folder: Path, config: CollectionConfig, encoder: Encoder | None, progress: Progress | None
    ) -> None:
        self.folder = folder
        self.reused = 0
        self._config = config
        self._families = config.families()
        self._encoder = encoder
        self._kinds = kinds_needed(self._families)
        self._progress = progress
        if self._kinds and encoder is None:
            raise InvalidInput(
                f"channels {list(config.channels)} need {sorted(self._kinds)} vectors, and there is no encoder"
            )
        if encoder is not None and (lacking := self._kinds - set(encoder.spec.dims)):
            raise InvalidInput(
                f"encoder {encoder.spec.name!r} gives {sorted(encoder.spec.dims)}, the channels need {sorted(lacking)} "
                "too; choose other channels (--channels) or another encoder"
            )

    def write(self, documents: Iterable[Document], total: int | None) -> list[Path]:
        """The blocks' folders, in order."""
        paths = []
        done = 0
        for index, block in enumerate(_cut(documents, self._config.block_documents)):
            paths.append(self._block(index, block))
            done += len(block)
            if self._progress is not None:
                self._progress(BuildProgress("encode", done, total))
        return paths

    def _block(self, index: int, documents: Sequence[Document]) -> Path:
        path = self.folder / f"{index:06d}-{self._digest(documents)[:40]}"
        if (path / MANIFEST).exists():
            self.reused += 1
            return path
        encoding = None
        if self._encoder is not None and self._kinds:
            encoding = self._encoder.encode_documents(documents, self._kinds)
        write_segment(path, documents, encoding, self._families)
        return path

    def _digest(self, documents: Sequence[Document]) -> str:
        settings = asdict(self._config)
        content = [[d.doc_id, d.title, d.text, canonical_json(dict(d.metadata))] for d in documents]
        recipe = [settings["channels"], settings["parameters"], encoder_identity(self._encoder)]
        try:
            return digest_of(content, recipe)
        except UnicodeEncodeError as error:
            bad = next(d.doc_id for d in documents if not _is_utf8(d))
            raise InvalidInput(f"document {bad!r} holds half a surrogate pair, which is no text: {error}") from error


def merge_blocks(
    out: Path, number: int, blocks: Sequence[Path], config: CollectionConfig, progress: Progress | None
) -> list[Segment]:
    """Segments of at most `segment_documents` documents, made from blocks in order."""
    families = config.families()
    segments: list[Segment] = []
    opened = [open_segment(path) for path in blocks]
    total = sum(len(block) for block in opened)
    done = 0
    for place, group in enumerate(_groups(opened, config.segment_documents)):
        path = out / "segments" / f"{number:06d}-{place:04d}"
        if path.exists():  # left by a writer that died before its snapshot counted
            shutil.rmtree(path)
        merge_segments(path, group, families)
        segments.append(open_segment(path))
        done += len(segments[-1])
        if progress is not None:
            progress(BuildProgress("merge", done, total))
    return segments


def kinds_needed(families: dict[str, Family]) -> set[VectorKind]:
    """What the encoder must give for these channels."""
    return {family.kind for family in families.values() if family.kind is not None}


def encoder_identity(encoder: Encoder | None) -> tuple[str, str] | None:
    """(name, fingerprint)."""
    return None if encoder is None else (encoder.spec.name, encoder.spec.fingerprint)


def _cut(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while block := list(islice(stream, size)):
        yield block


def _groups(blocks: Sequence[Segment], most: int) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for block in blocks:
        if group and sum(b.n_live for b in group) + block.n_live > most:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _is_utf8(document: Document) -> bool:
    try:
        (document.doc_id + document.title + document.text + canonical_json(dict(document.metadata))).encode()
    except UnicodeEncodeError:
        return False
    return True
