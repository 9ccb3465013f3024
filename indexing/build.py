"""From documents to a collection: blocks are encoded once and kept, then merged into segments (ADR 1).

A block is named by the digest of its documents, the configuration and the encoder. A build that was killed finds its
finished blocks and goes on; what it makes has the same bytes as an unbroken one.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from chamfer.artifact import MANIFEST, canonical_json, digest_of, open_artifact, write_artifact
from chamfer.errors import Conflict, InvalidInput
from chamfer.protocols import Encoder
from chamfer.types import Document, Encoding, VectorKind
from indexing.family import Codec, Family
from indexing.segment import Segment, merge_segments, open_segment, write_segment
from indexing.snapshot import (
    BLOCKS,
    CollectionConfig,
    add_codecs,
    commit,
    current_name,
    has_snapshot,
    read_codecs,
    writer_lock,
)

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
        exists = has_snapshot(out)
        if exists and not replace:
            raise Conflict(f"{out} holds a collection already; add to it, or replace it (--replace)")
        number = 1 + (int(current_name(out).rpartition("-")[2]) if exists else 0)
        blocks = BlockWriter(out / BLOCKS, settings, encoder, progress)
        kept = blocks.write(documents, total)
        segments = merge_blocks(out, number, kept, settings, blocks.families, progress)
        name = commit(out, number, settings, encoder_identity(encoder), blocks.codecs, segments)
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
    """Encodes documents block by block into a folder, reusing blocks that are already there.

    Without `codecs` those of a new collection are learnt from the first block. After `write`, `families` and `codecs`
    are what the blocks were packed with.
    """

    def __init__(
        self,
        folder: Path,
        config: CollectionConfig,
        encoder: Encoder | None,
        progress: Progress | None,
        codecs: Mapping[str, Codec] | None = None,
    ) -> None:
        self.folder = folder
        self.reused = 0
        self.families = config.families(codecs)
        self.codecs: Mapping[str, Codec] = codecs or {}
        self._codec_digest = "" if codecs is None else _codec_digest(codecs)
        self._config = config
        self._kinds = kinds_needed(self.families)
        self._encoder = encoder
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
        if not self._codec_digest:
            self._learn(digest_of("no document"), None)
        return paths

    def _block(self, index: int, documents: Sequence[Document]) -> Path:
        encoding = None
        digest = self._digest(documents)
        if not self._codec_digest:
            encoding = self._learn(digest, documents)
        path = self.folder / f"{index:06d}-{digest_of(digest, self._codec_digest)[:40]}"
        if (path / MANIFEST).exists():
            self.reused += 1
            return path
        write_segment(path, documents, encoding or self._encode(documents), self.families)
        return path

    def _encode(self, documents: Sequence[Document]) -> Encoding | None:
        if self._encoder is None or not self._kinds:
            return None
        return self._encoder.encode_documents(documents, self._kinds)

    def _learn(self, digest: str, documents: Sequence[Document] | None) -> Encoding | None:
        """Codecs learnt from the first block, kept beside it so that a resumed build goes on with the same ones."""
        path = self.folder / f"codecs-{digest[:40]}"
        encoding = None
        if not (path / MANIFEST).exists():
            encoding = None if documents is None else self._encode(documents)
            with write_artifact(path, "codecs", {}) as writer:
                add_codecs(writer, {name: family.learn(encoding) for name, family in self.families.items()})
        self.codecs = read_codecs(open_artifact(path, "codecs"), self._config.channels)
        self._codec_digest = _codec_digest(self.codecs)
        self.families = self._config.families(self.codecs)
        return encoding

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
    out: Path,
    number: int,
    blocks: Sequence[Path],
    config: CollectionConfig,
    families: Mapping[str, Family],
    progress: Progress | None,
) -> list[Segment]:
    """Segments of at most `segment_documents` documents, made from blocks in order."""
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


def _codec_digest(codecs: Mapping[str, Codec]) -> str:
    parts = [
        [channel, name, str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for channel, codec in sorted(codecs.items())
        for name, array in sorted(codec.items())
    ]
    return digest_of(parts)


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
