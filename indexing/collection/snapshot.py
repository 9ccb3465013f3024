"""Snapshots: the segments of a collection, their live rows and the configuration. `CURRENT` names the one to serve.

A snapshot is an artifact that lists the digest of each segment's manifest, so that segments of two snapshots never
mix. chamfer.indexing.collection.writer writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chamfer.core.artifact import Artifact, ArtifactWriter, open_artifact
from chamfer.core.errors import ChamferError, Corrupt, Incompatible, NotFound
from chamfer.core.mapped_files import naming_limits
from chamfer.indexing.collection.config import CollectionConfig, read_config
from chamfer.indexing.collection.recall_report import ChannelRecall
from chamfer.indexing.collection.segment import Segment, open_segment
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import Codec

KIND = "snapshot"
CURRENT = "CURRENT"
BLOCKS = ".building"
POINTER_DIGITS = 16  # leading digits of the digest that CURRENT holds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a build learnt from its sample: trained codecs, and the recall of the channels of MaxSim candidates."""

    codecs: Mapping[str, Codec]
    recall: Mapping[str, ChannelRecall] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An opened snapshot with its segments. `recall` is what the build measured, by channel."""

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
    """Whether `path` holds a finished collection. Raises Corrupt if it holds snapshots whose pointer was lost."""
    if (path / CURRENT).exists():
        return True
    names = sorted(p.name for p in (path / "snapshots").glob("snapshot-*"))
    if names and not (path / BLOCKS).is_dir():  # with blocks, the first build died before writing it
        raise Corrupt(
            f"{path / CURRENT} is missing although there are snapshots; `echo {names[-1]} > {path / CURRENT}` points "
            "to the newest"
        )
    return False


def current_name(path: Path) -> str:
    """The snapshot that CURRENT names. Raises NotFound if there is no finished collection at `path`."""
    return _pointer(path)[0]


def open_snapshot(path: Path, *, encoder_fingerprint: str | None = None, verify: bool = False) -> Snapshot:
    """The current snapshot; see `read_current` for what happens while a writer replaces it.

    Raises NotFound, Corrupt, Incompatible (newer format; built with another encoder than `encoder_fingerprint`) or
    Unavailable (too many open files or mappings).
    """
    return read_current(path, lambda name: read_snapshot(path, name, encoder_fingerprint, verify))


def read_current(path: Path, read: Callable[[str], T]) -> T:
    """The result of `read(NAME)` for the current snapshot; if a writer replaces it meanwhile, for the newer one.

    If `read` fails for an unforeseen reason, the SHA-256 of every file of the snapshot is checked, and Corrupt names a
    file that changed; if none did, the original error is raised. An exhausted limit of the system is Unavailable.
    """
    with naming_limits(path):
        name = current_name(path)
    try:
        with naming_limits(path):
            return read(name)
    except Exception as error:
        if current_name(path) == name:
            if isinstance(error, NotFound):  # the pointer names it, so it ought to exist
                raise Corrupt(error.detail) from None
            if not isinstance(error, ChamferError):
                read_snapshot(path, name, None, verify=True)
            raise
    return read_current(path, read)


def read_snapshot(path: Path, name: str, encoder_fingerprint: str | None, verify: bool) -> Snapshot:
    """The snapshot of this name with its segments; for errors see `open_snapshot`."""
    artifact = open_artifact(path / "snapshots" / name, KIND, verify=verify)
    _check_pointer(path, name, artifact)
    body = artifact.body
    encoder = body["encoder"] or {}
    fingerprint = encoder.get("fingerprint")
    if encoder_fingerprint is not None and fingerprint is not None and fingerprint != encoder_fingerprint:
        raise Incompatible(
            f"{path} was built with encoder {encoder['name']!r} (fingerprint {fingerprint[:12]}…), this one is "
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
    config = read_config(body["config"], path)
    codecs = read_codecs(artifact, config.channels)
    return Snapshot(name, config, encoder.get("name"), fingerprint, codecs, tuple(segments), read_recall(body))


def add_codecs(writer: ArtifactWriter, codecs: Mapping[str, Codec]) -> None:
    """Writes codecs into an artifact; `read_codecs` reads them."""
    for channel, codec in codecs.items():
        for name, array in codec.items():
            writer.add_array(f"codec.{channel}.{name}", array)


def read_codecs(artifact: Artifact, channels: Sequence[str]) -> dict[str, Codec]:
    """The codec of every channel; empty for a channel without one."""
    return {channel: artifact.arrays(f"codec.{channel}.") for channel in channels}


def read_recall(body: Mapping[str, Any]) -> dict[str, ChannelRecall]:
    """The measured recall by channel, from the body of a manifest."""
    return {channel: ChannelRecall(**measured) for channel, measured in body.get("recall", {}).items()}


def _pointer(path: Path) -> tuple[str, str]:
    """(name, first digits of its manifest's digest), the digits "" if the pointer was written by hand."""
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


def _check_pointer(path: Path, name: str, artifact: Artifact) -> None:
    """Raises Corrupt if CURRENT names this snapshot with a different digest."""
    pointed, digest = _pointer(path)
    if pointed == name and digest and digest != artifact.digest[:POINTER_DIGITS]:
        raise Corrupt(
            f"{path / CURRENT} points to {name} with digest {digest[:40]}, and the snapshot has "
            f"{artifact.digest[:POINTER_DIGITS]}: one of the two changed after it was written. To find out which, "
            f"write the name alone (`echo {name} > {path / CURRENT}`) and run `chamfer inspect --verify`"
        )
