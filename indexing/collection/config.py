"""The configuration of a collection: its channels, the sizes of segments and blocks, and the recall floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.indexing.collection.recall_report import FloorConfig
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import Codec


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """The composition of a collection; stored in its snapshots.

    channels           names of index families, one retriever each
    parameters         parameters[channel] configures the family of that channel
    segment_documents  documents in a segment, at most
    block_documents    documents that are encoded together; an interrupted build resumes after the last whole block
    keep_snapshots     number of snapshots, the newest ones, whose files are kept
    sample_documents   number of first documents that codecs are trained on and `floor` is measured on
    floor              the lowest recall that a build accepts from a channel of MaxSim candidates
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


def read_config(stored: Mapping[str, Any], path: Path) -> CollectionConfig:
    """The configuration stored in the snapshot of the collection at `path`; Incompatible if it has unknown keys."""
    try:
        floor = FloorConfig(**stored.get("floor", {}))
        return CollectionConfig(**{**stored, "channels": tuple(stored["channels"]), "floor": floor})
    except (TypeError, KeyError) as error:
        raise Incompatible(
            f"{path} was built with a configuration that this version of Chamfer does not read: {error}; update "
            "Chamfer or build the collection again"
        ) from error
