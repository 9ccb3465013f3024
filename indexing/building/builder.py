"""Builds collections: documents are encoded block by block, and the blocks are merged into segments (ADR 1).

A block is named by the digest of its documents, the configuration and the encoder. A build that was killed reuses its
finished blocks when it is run again, and writes the same bytes as a build that was not interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from chamfer.core.artifact import canonical_json, digest_of, find_artifact, remove_directory
from chamfer.core.errors import Conflict, InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Encoding, Query
from chamfer.indexing.building.block_encoder import BlockEncoder
from chamfer.indexing.building.block_merging import Block, merge_blocks
from chamfer.indexing.building.codec_training import SampleBlock, check_floor, codec_digest, keep_sample, learn
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.indexing.collection.recall_report import ChannelRecall
from chamfer.indexing.collection.segment import KIND as SEGMENT
from chamfer.indexing.collection.segment import write_segment
from chamfer.indexing.collection.snapshot import BLOCKS, Learnt, current_name, has_snapshot
from chamfer.indexing.collection.writer import commit, writer_lock
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import Codec

T = TypeVar("T")
_Prepared = tuple[Sequence[Document], str, Callable[[], Encoding | None]]  # documents, digest, encoding function
BuildConfig = CollectionConfig


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Progress of a build: `done` of `total` (None if unknown) documents in this stage (of pairs, in stage "score")."""

    stage: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built.

    truncated      number of documents that were longer than the encoder reads
    reused_blocks  number of blocks that an earlier, interrupted build had finished
    recall         by channel of MaxSim candidates: the recall measured on the sample
    """

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
    """Options of one build that are not part of the collection's configuration and do not change its format.

    total     number of documents, if it is known
    progress  called with the progress after each step
    device    on which families train codecs and pack vectors: cpu or cuda (models.device sets that of the encoder)
    queries   for the recall floor, and as anchor queries of family `cur`; sampled from the documents if empty
    reranker  the reranker whose scores family `cur` stores
    notice    called with one message (for example a cost estimate) before the build starts
    """

    total: int | None = None
    progress: Progress | None = None
    device: str = "cpu"
    queries: Sequence[Query] = ()
    reranker: Reranker | None = None
    notice: Callable[[str], None] | None = None

    def report_progress(self, stage: str, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(BuildProgress(stage, done, total))

    def report_notice(self, message: str) -> None:
        if self.notice is not None:
            self.notice(message)


def build(
    documents: Iterable[Document],
    out: Path,
    *,
    encoder: Encoder | None,
    config: BuildConfig | None = None,
    replace: bool = False,
    run: BuildRun | None = None,
) -> BuildReport:
    """Builds a collection at `out` from documents; after an interruption, the same call resumes.

    Raises Conflict if `out` holds a collection (unless `replace` is set, which writes its next snapshot) or has another
    writer; InvalidInput if a channel needs an encoder and there is none, an id is used twice, or a channel is below
    the recall floor; Unavailable if the process runs out of open files or mappings.
    """
    started = time.monotonic()
    settings = config or BuildConfig()
    run = run or BuildRun()
    with writer_lock(out):
        exists = has_snapshot(out)
        if exists and not replace:
            raise Conflict(f"{out} already holds a collection; add documents to it, or replace it (--replace)")
        number = 1 + (int(current_name(out).rpartition("-")[2]) if exists else 0)
        writer = BlockWriter(out / BLOCKS, settings, encoder, run)
        blocks = writer.write(documents)
        segments = merge_blocks(out, number, blocks, settings.segment_documents, writer.families, run.report_progress)
        name = commit(out, number, settings, encoder_identity(encoder), writer.learnt, segments)
        remove_directory(out / BLOCKS)
    return BuildReport(
        name,
        sum(len(segment) for segment in segments),
        sum(segment.n_truncated for segment in segments),
        sum(segment.artifact.n_bytes for segment in segments),
        time.monotonic() - started,
        len(blocks),
        writer.reused,
        writer.learnt.recall,
    )


class BlockWriter:
    """Encodes documents block by block into a folder, and reuses blocks that an earlier run finished.

    While one block is packed and written, the next is encoded. Without `learnt`, codecs are trained on the first
    documents, as for a new collection. After `write`, `families` and `learnt` are those used to pack the blocks.
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

    def write(self, documents: Iterable[Document]) -> list[Block]:
        """Writes the blocks of the documents, or reuses finished ones, in order."""
        batches = self._prepared(_cut(documents, self._config.block_documents))
        sample = self._sample(batches) if self._learns else []
        sampled: Iterable[_Prepared] = [(block.documents, block.digest, block.encoding) for block in sample]
        others: Iterable[_Prepared] = ((batch, self._digest(batch), partial(self._encode, batch)) for batch in batches)
        blocks: list[Block] = []
        done = 0
        for block in overlapped(self._write_one(*numbered) for numbered in enumerate(chain(sampled, others))):
            blocks.append(block)
            done += block.n_documents
            self._run.report_progress("encode", done, self._run.total)
        return blocks

    def _prepared(self, batches: Iterator[list[Document]]) -> Iterator[list[Document]]:
        """Prepares the encoding with the first batch; returns all batches, the first included."""
        first = next(batches, None)
        if first is None:
            return iter(())
        texts = [query.text for query in self._run.queries]
        cost = self._encode.prepare(first, texts, self.folder, self._run.total, self._run.report_progress)
        if cost is not None:
            self._run.report_notice(f"scores of the cur channel: {cost}")
        return chain([first], batches)

    def _write_one(self, index: int, prepared: _Prepared) -> Callable[[], Block]:
        """Encodes a block unless it is already finished; returns a function that packs and writes it."""
        documents, digest, encode = prepared
        recipe = [list(self._config.channels), self._config.parameters]
        path = self.folder / f"{index:06d}-{digest_of(digest, recipe, self._codec_digest)[:40]}"
        block = Block(path, len(documents))
        if find_artifact(path, SEGMENT) is not None:
            self.reused += 1
            return lambda: block
        encoding = encode()

        def pack_and_write() -> Block:
            write_segment(path, documents, encoding, self.families)
            return block

        return pack_and_write

    def _sample(self, batches: Iterator[list[Document]]) -> list[SampleBlock]:
        """Encodes the sample, trains codecs on it and checks the recall floor."""
        sample: list[SampleBlock] = []
        done = 0
        total = self._config.sample_documents
        for batch in batches:
            sample.append(keep_sample(self.folder, batch, self._digest(batch), self._encode))
            done += len(batch)
            self._run.report_progress("sample", min(done, total), total)
            if done >= total:
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
            raise InvalidInput(
                f"document {bad!r} holds half a surrogate pair, which cannot be written as UTF-8: {error}"
            ) from error

    @staticmethod
    def _families(config: CollectionConfig, codecs: Mapping[str, Codec] | None, device: str) -> dict[str, Family]:
        return {name: family.on_device(device) for name, family in config.families(codecs).items()}


def overlapped(pieces: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of the functions in `pieces`, in order; a thread runs each while the next one is produced.

    At most two functions are pending. If producing one fails, the earlier ones are finished first.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: Future[T] | None = None
        for piece in pieces:
            earlier, pending = pending, thread.submit(piece)
            if earlier is not None:
                yield earlier.result()
        if pending is not None:
            yield pending.result()


def encoder_identity(encoder: Encoder | None) -> tuple[str, str] | None:
    """(name, fingerprint) of the encoder, None without one."""
    return None if encoder is None else (encoder.spec.name, encoder.spec.fingerprint)


def _cut(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while block := list(islice(stream, size)):
        yield block


def _is_utf8(document: Document) -> bool:
    try:
        (document.doc_id + document.title + document.text + canonical_json(dict(document.metadata))).encode()
    except UnicodeEncodeError:
        return False
    return True
