"""Snapshots: which segments, which of their rows, under which configuration. `CURRENT` names the one that is served.

The only writer holds `.lock`. A snapshot is an artifact that lists the digest of each segment's manifest, so that
segments of two snapshots can never mix.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.artifact import (
    Artifact,
    ArtifactWriter,
    discard_temporaries,
    open_artifact,
    replace_file,
    write_artifact,
)
from chamfer.core.errors import ChamferError, Conflict, Corrupt, Incompatible, InvalidInput, NotFound
from chamfer.indexing.build.recall_floor import ChannelRecall, FloorConfig
from chamfer.indexing.collection.segment import Segment, open_segment
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import Codec

KIND = "snapshot"
CURRENT = "CURRENT"
BLOCKS = ".building"
POINTER_DIGITS = 16  # of the digest, in CURRENT


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """What a collection is made of; kept in its snapshots.

    channels name families; parameters[channel] are that family's; segment_documents bounds a segment;
    block_documents is the unit of encoding and resumption; keep_snapshots old ones stay openable.
    sample_documents, the first ones, are what families with a codec learn from and what `floor` is measured on.
    """

    channels: tuple[str, ...] = ("dense", "multivector", "lexical")
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    segment_documents: int = 65_536
    block_documents: int = 512
    keep_snapshots: int = 2
    sample_documents: int = 2_048
    floor: FloorConfig = field(default_factory=FloorConfig)

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise InvalidInput(f"channels are {list(self.channels)}, expected at least one, each once")
        if self.block_documents < 1 or self.segment_documents < self.block_documents or self.keep_snapshots < 1:
            raise InvalidInput(
                f"block_documents {self.block_documents}, segment_documents {self.segment_documents}, keep_snapshots "
                f"{self.keep_snapshots}; expected 1 <= block <= segment and keep_snapshots >= 1"
            )
        if self.sample_documents < 1:
            raise InvalidInput(f"sample_documents is {self.sample_documents}, expected at least 1")
        if stray := set(self.parameters) - set(self.channels):
            raise InvalidInput(f"parameters are given for {sorted(stray)}, which are not among the channels")

    def families(self, codecs: Mapping[str, Codec] | None = None) -> dict[str, Family]:
        """The families by channel, with their codecs if given; InvalidInput for an unknown name or parameter."""
        plain = {name: make_family(name, self.parameters.get(name)) for name in self.channels}
        if codecs is None:
            return plain
        return {name: family.with_codec(codecs.get(name, {})) for name, family in plain.items()}


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a build learnt from its sample: the codecs, and the recall of channels that stand in for MaxSim."""

    codecs: Mapping[str, Codec]
    recall: Mapping[str, ChannelRecall] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An opened snapshot with its segments; `recall` by channel is what the build measured
    (chamfer.indexing.build.recall_floor).
    """

    name: str
    config: CollectionConfig
    encoder_name: str | None
    encoder_fingerprint: str | None
    codecs: Mapping[str, Codec]
    segments: tuple[Segment, ...]
    recall: Mapping[str, ChannelRecall] = field(default_factory=dict)

    def families(self) -> dict[str, Family]:
        """The families by channel, with the collection's codecs."""
        return self.config.families(self.codecs)

    @property
    def number(self) -> int:
        return int(self.name.rpartition("-")[2])


def has_snapshot(path: Path) -> bool:
    """Whether there is a finished collection. Corrupt if there was one, and the pointer to it is lost."""
    if (path / CURRENT).exists():
        return True
    names = sorted(p.name for p in (path / "snapshots").glob("snapshot-*"))
    if names and not (path / BLOCKS).is_dir():  # with blocks beside it, a first build was about to write the pointer
        raise Corrupt(
            f"{path / CURRENT} is missing, and there are snapshots; `echo {names[-1]} > {path / CURRENT}` points to "
            "the newest"
        )
    return False


def current_name(path: Path) -> str:
    """What CURRENT names. NotFound if there is no finished collection at `path`."""
    return _pointer(path)[0]


def _pointer(path: Path) -> tuple[str, str]:
    """(name, beginning of the digest of its manifest, "" where the pointer was written by hand)."""
    try:
        text = (path / CURRENT).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        has_snapshot(path)
        hint = "; a build was begun here and not finished: run it again" if (path / BLOCKS).is_dir() else ""
        raise NotFound(f"{path} holds no collection (no {CURRENT}){hint}") from None
    except UnicodeDecodeError:
        text = "?"
    name, _, digest = text.strip().partition(" ")
    if not name.startswith("snapshot-") or not name[9:].isdigit():
        raise Corrupt(f"{path / CURRENT} holds {text[:60]!r}, expected a name such as snapshot-000001")
    return name, digest


def open_snapshot(path: Path, *, encoder_fingerprint: str | None = None, verify: bool = False) -> Snapshot:
    """The current snapshot. If a writer replaced and removed it while it was being opened, the newer one.

    Raises NotFound, Corrupt, or Incompatible (newer format; made with another encoder than `encoder_fingerprint`).
    """
    name = current_name(path)
    try:
        with naming_corruption(path):
            return _open(path, name, encoder_fingerprint, verify)
    except (NotFound, Corrupt) as error:
        newer = current_name(path)
        if newer == name:
            raise Corrupt(error.detail) if isinstance(error, NotFound) else error from None
        return open_snapshot(path, encoder_fingerprint=encoder_fingerprint, verify=verify)


@contextmanager
def naming_corruption(path: Path) -> Iterator[None]:
    """Around whatever reads the files of the current snapshot: when that fails in a way nobody foresaw, all bytes are
    compared with their SHA-256, and Corrupt names the file that changed. If none did, the failure is what it was."""
    try:
        yield
    except ChamferError:
        raise
    except Exception:
        _open(path, current_name(path), None, verify=True)
        raise


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Held by the one writer of a collection; the system releases it when the process dies. Conflict if it is held."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another process is writing to {path}; wait until it has ended") from None
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
    """Writes snapshot `number` over finished segments, and swaps CURRENT: the moment at which it all counts."""
    _check_unique(segments)
    name = f"snapshot-{number:06d}"
    target = path / "snapshots" / name
    if target.exists():  # a writer died between publishing it and swapping CURRENT
        shutil.rmtree(target)
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


def add_codecs(writer: ArtifactWriter, codecs: Mapping[str, Codec]) -> None:
    """Writes codecs into an artifact; `read_codecs` reads them."""
    for channel, codec in codecs.items():
        for name, array in codec.items():
            writer.add_array(f"codec.{channel}.{name}", array)


def read_codecs(artifact: Artifact, channels: Sequence[str]) -> dict[str, Codec]:
    """The codec of every channel, empty where it has none."""
    return {channel: artifact.arrays(f"codec.{channel}.") for channel in channels}


def read_recall(body: Mapping[str, Any]) -> dict[str, ChannelRecall]:
    """The measured recall by channel, from an artifact's body."""
    return {channel: ChannelRecall(**measured) for channel, measured in body.get("recall", {}).items()}


def _open(path: Path, name: str, encoder_fingerprint: str | None, verify: bool) -> Snapshot:
    artifact = open_artifact(path / "snapshots" / name, KIND, verify=verify)
    pointed, digest = _pointer(path)
    if pointed == name and digest and digest != artifact.digest[:POINTER_DIGITS]:
        raise Corrupt(
            f"{path / CURRENT} points to {name} with digest {digest[:40]}, and that has "
            f"{artifact.digest[:POINTER_DIGITS]}: one of both changed; `chamfer inspect --verify` after writing "
            "the name alone tells which"
        )
    body = artifact.body
    encoder = body["encoder"] or {}
    found = encoder.get("fingerprint")
    if encoder_fingerprint is not None and found is not None and found != encoder_fingerprint:
        raise Incompatible(
            f"{path} was built with encoder {encoder['name']!r} (fingerprint {found[:12]}…), this one is "
            f"{encoder_fingerprint[:12]}…; set models.encoder to the one it was built with, or build again"
        )
    segments = []
    for entry in body["segments"]:
        live_name = f"live.{entry['name']}"
        bits = artifact.array(live_name) if f"{live_name}.npy" in artifact.files else None
        live = None if bits is None else np.unpackbits(bits, count=entry["documents"]).astype(bool)
        segment = open_segment(path / "segments" / entry["name"], live, verify=verify)
        if segment.artifact.digest != entry["digest"]:
            raise Corrupt(
                f"segment {segment.artifact.path} is not the one that {name} was made with "
                f"(digest {segment.artifact.digest[:12]}…, expected {entry['digest'][:12]}…); restore it from a copy"
            )
        segments.append(segment)
    config = _config(body["config"], path)
    codecs = read_codecs(artifact, config.channels)
    recall = read_recall(body)
    return Snapshot(name, config, encoder.get("name"), found, codecs, tuple(segments), recall)


def _config(stored: Mapping[str, Any], path: Path) -> CollectionConfig:
    try:
        floor = FloorConfig(**stored.get("floor", {}))
        return CollectionConfig(**{**stored, "channels": tuple(stored["channels"]), "floor": floor})
    except (TypeError, KeyError) as error:
        raise Incompatible(f"{path} has a configuration that this Chamfer does not know: {error}") from error


def _check_unique(segments: Sequence[Segment]) -> None:
    hashes = [np.empty(0, dtype=np.uint64), *(s.table.hashes_of(s.live_rows()) for s in segments)]
    flat = np.sort(np.concatenate(hashes))
    twice = flat[:-1][flat[1:] == flat[:-1]]
    if not len(twice):
        return
    ids: list[str] = []
    for segment in segments:
        rows = segment.live_rows()
        ids += segment.table.doc_ids(rows[np.isin(segment.table.hashes_of(rows), twice)])
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise InvalidInput(f"document id {repeated[0]!r} was used twice ({len(repeated)} such ids); ids are unique")


def _remove_unreferenced(path: Path) -> None:
    """Removes snapshots beyond those to keep, and segments that no snapshot names. Readers keep what they mapped."""
    newest = current_name(path)
    folder = path / "snapshots"
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("snapshot-"))
    keep = int(open_artifact(folder / newest, KIND).body["config"]["keep_snapshots"])
    kept = [name for name in names if name <= newest][-keep:]
    for name in names:
        if name not in kept:
            shutil.rmtree(folder / name)
    named = {e["name"] for name in kept for e in open_artifact(folder / name, KIND).body["segments"]}
    for segment in (path / "segments").iterdir() if (path / "segments").is_dir() else ():
        if segment.name not in named:
            shutil.rmtree(segment)
