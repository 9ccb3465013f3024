"""From documents to a collection: blocks are encoded once and kept, then merged into segments (ADR 1).

A block is named by the digest of its documents, the configuration and the encoder. A build that was killed finds its
finished blocks and goes on; what it makes has the same bytes as an unbroken one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from chamfer.core.artifact import MANIFEST, canonical_json, digest_of
from chamfer.core.errors import Conflict, InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Encoding, Query
from chamfer.indexing.build.block_encoder import BlockEncoder
from chamfer.indexing.build.codec_training import SampleBlock, check_floor, codec_digest, keep_sample, learn
from chamfer.indexing.build.recall_floor import ChannelRecall
from chamfer.indexing.collection.segment import Segment, merge_segments, open_segment, write_segment
from chamfer.indexing.collection.snapshot import (
    BLOCKS,
    CollectionConfig,
    Learnt,
    commit,
    current_name,
    has_snapshot,
    writer_lock,
)
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import Codec

T = TypeVar("T")
_Prepared = tuple[Sequence[Document], str, Callable[[], Encoding | None]]  # documents, their digest, how to encode them
BuildConfig = CollectionConfig


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build stands: `done` of `total` (None if unknown) documents in this stage."""

    stage: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built. `reused_blocks` came from an earlier attempt; `truncated` documents were cut by the encoder;
    `recall` is what channels that stand in for MaxSim held in the sample."""

    snapshot: str
    documents: int
    truncated: int
    n_bytes: int
    seconds: float
    blocks: int
    reused_blocks: int
    recall: Mapping[str, ChannelRecall] = field(default_factory=dict)


Progress = Callable[[BuildProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRun:
    """How a build runs: who is told, where families compute, what the recall floor is measured with.

    total    how many documents there will be, if that is known
    device   where families learn and pack: cpu or cuda (the encoder knows its own)
    queries  for the recall floor, and the anchor queries of family `cur`; made up from the documents if none are given
    reranker whose scores family `cur` keeps
    notice   is told in a sentence what should be known before it begins
    """

    total: int | None = None
    progress: Progress | None = None
    device: str = "cpu"
    queries: Sequence[Query] = ()
    reranker: Reranker | None = None
    notice: Callable[[str], None] | None = None

    def say(self, stage: str, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(BuildProgress(stage, done, total))

    def tell(self, sentence: str) -> None:
        if self.notice is not None:
            self.notice(sentence)


def build(
    documents: Iterable[Document],
    out: Path,
    *,
    encoder: Encoder | None,
    config: BuildConfig | None = None,
    replace: bool = False,
    run: BuildRun | None = None,
) -> BuildReport:
    """Builds a collection at `out` from documents; run again after an interruption, it goes on.

    Raises Conflict if there is a collection already (unless `replace`: then it becomes a new snapshot) or another
    writer; InvalidInput if a channel needs an encoder and there is none, an id was used twice, or a channel is below
    the recall floor.
    """
    started = time.monotonic()
    settings = config or BuildConfig()
    how = run or BuildRun()
    with writer_lock(out):
        exists = has_snapshot(out)
        if exists and not replace:
            raise Conflict(f"{out} holds a collection already; add to it, or replace it (--replace)")
        number = 1 + (int(current_name(out).rpartition("-")[2]) if exists else 0)
        blocks = BlockWriter(out / BLOCKS, settings, encoder, how)
        kept = blocks.write(documents)
        segments = merge_blocks(out, number, kept, settings, blocks.families, how.progress)
        name = commit(out, number, settings, encoder_identity(encoder), blocks.learnt, segments)
        shutil.rmtree(out / BLOCKS, ignore_errors=True)
    return BuildReport(
        name,
        sum(len(segment) for segment in segments),
        sum(segment.n_truncated for segment in segments),
        sum(segment.artifact.n_bytes for segment in segments),
        time.monotonic() - started,
        len(kept),
        blocks.reused,
        blocks.learnt.recall,
    )


class BlockWriter:
    """Encodes documents block by block into a folder, reusing blocks that are already there.

    While a block is packed and written, the next is being encoded. Without `learnt` a new collection learns from its
    first documents. After `write`, `families` and `learnt` are what the blocks were packed with.
    """

    def __init__(
        self,
        folder: Path,
        config: CollectionConfig,
        encoder: Encoder | None,
        run: BuildRun,
        learnt: Learnt | None = None,
    ) -> None:
        self.folder = folder
        self.reused = 0
        self.learnt = learnt or Learnt({})
        self.families = self._families(config, None if learnt is None else learnt.codecs, run.device)
        self._learns = learnt is None and any(family.learns for family in self.families.values())
        self._codec_digest = codec_digest(self.learnt.codecs)
        self._config = config
        self._encoder = encoder
        self._encode = BlockEncoder(self.families, encoder, run.reranker)
        self._run = run

    def write(self, documents: Iterable[Document]) -> list[Path]:
        """The blocks' folders, in order."""
        blocks = self._begun(_cut(documents, self._config.block_documents))
        sample = self._sample(blocks) if self._learns else []
        known: Iterable[_Prepared] = [(block.documents, block.digest, block.encoding) for block in sample]
        others: Iterable[_Prepared] = ((b, self._digest(b), partial(self._encode, b)) for b in blocks)
        paths: list[Path] = []
        done = 0
        for path, n in overlapped(self._work(*numbered) for numbered in enumerate(chain(known, others))):
            paths.append(path)
            done += n
            self._run.say("encode", done, self._run.total)
        return paths

    def _begun(self, blocks: Iterator[list[Document]]) -> Iterator[list[Document]]:
        """The same blocks, once the encoding of them has been prepared by the first."""
        first = next(blocks, None)
        if first is None:
            return iter(())
        texts = [query.text for query in self._run.queries]
        cost = self._encode.begin(first, texts, self.folder, self._run.total, self._run.say)
        if cost is not None:
            self._run.tell(f"scores of the cur channel: {cost}")
        return chain([first], blocks)

    def _work(self, index: int, block: _Prepared) -> Callable[[], tuple[Path, int]]:
        """What is left to do for a block once it is encoded; it gives the block's folder and length."""
        documents, digest, encode = block
        recipe = [list(self._config.channels), self._config.parameters]
        path = self.folder / f"{index:06d}-{digest_of(digest, recipe, self._codec_digest)[:40]}"
        if (path / MANIFEST).exists():
            self.reused += 1
            return lambda: (path, len(documents))
        encoding = encode()

        def pack_and_write() -> tuple[Path, int]:
            write_segment(path, documents, encoding, self.families)
            return path, len(documents)

        return pack_and_write

    def _sample(self, blocks: Iterator[list[Document]]) -> list[SampleBlock]:
        """Takes the sample's blocks and learns from them."""
        sample: list[SampleBlock] = []
        done = 0
        wanted = self._config.sample_documents
        for block in blocks:
            sample.append(keep_sample(self.folder, block, self._digest(block), self._encode))
            done += len(block)
            self._run.say("sample", min(done, wanted), wanted)
            if done >= wanted:
                break
        recipe = self.families, self._encoder, self._config, self._run.queries
        self.learnt = learn(self.folder, sample, *recipe)
        check_floor(self.learnt, sample, *recipe, self._run.total)
        self._codec_digest = codec_digest(self.learnt.codecs)
        self.families = self._families(self._config, self.learnt.codecs, self._run.device)
        return sample

    def _digest(self, documents: Sequence[Document]) -> str:
        content = [[d.doc_id, d.title, d.text, canonical_json(dict(d.metadata))] for d in documents]
        try:
            return digest_of(content, *self._encode.identity)
        except UnicodeEncodeError as error:
            bad = next(d.doc_id for d in documents if not _is_utf8(d))
            raise InvalidInput(f"document {bad!r} holds half a surrogate pair, which is no text: {error}") from error

    @staticmethod
    def _families(config: CollectionConfig, codecs: Mapping[str, Codec] | None, device: str) -> dict[str, Family]:
        return {name: family.on_device(device) for name, family in config.families(codecs).items()}


def overlapped(pieces: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the pieces of work return, in order. Each runs in one thread while the next ones are being made.

    At most two wait. If making a piece fails, those made before are finished first.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[T] | None = None
        for piece in pieces:
            earlier, waiting = waiting, thread.submit(piece)
            if earlier is not None:
                yield earlier.result()
        if waiting is not None:
            yield waiting.result()


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
