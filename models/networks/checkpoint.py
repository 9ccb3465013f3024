"""Checkpoints: the folders of trained models that `chamfer train` writes and the catalogue ships.

DIR/model.json            format, kind, backbone, features, token limits, head configuration, scale of the adapter
DIR/weights.safetensors   head.* and adapter.LAYER.down / .up, f16

The folder may also hold a model card, the recipe and the report, which are not read here. The adapter is merged into
the backbone when the model is opened, so that it costs nothing later and needs no PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save
from torch import Tensor

from chamfer.core.artifact import digest_of, file_digest
from chamfer.core.errors import Incompatible, NotFound
from chamfer.models.networks.features import Attention
from chamfer.models.networks.transformer import LowRankUpdate, Tower, folder_of, merge_adapter, open_tower

FORMAT = 1
DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
ITSELF = "."


@dataclass(frozen=True, kw_only=True)
class Description:
    """What model.json says.

    kind              tokens, sparse, dense, cross, reranker or universal
    backbone          mini or a folder; "." on disk is the checkpoint itself (a compressed model), which `describe`
                      replaces by its path
    query_tokens, document_tokens   limits in tokens, special ones included; for pairs document_tokens is that of both
    adapted           whether the adapter changes both sides or queries alone (trained against a frozen bank)
    """

    kind: str
    backbone: str
    features: tuple[str, ...]
    query_tokens: int
    document_tokens: int
    head: Mapping[str, Any] = field(default_factory=dict)
    adapter_scale: float = 0.0
    adapted: Literal["both", "queries"] = "both"
    attention: Attention = "own"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: the state of the head (real numbers as f32) and the adapter by layer name."""

    description: Description
    head: dict[str, Tensor]
    adapter: dict[str, LowRankUpdate]


def write_checkpoint(
    folder: Path, description: Description, head: Mapping[str, Tensor], adapter: Mapping[str, LowRankUpdate]
) -> None:
    """Writes description and weights; tensors of real numbers are stored as f16."""
    tensors = {f"head.{name}": tensor for name, tensor in head.items()}
    for name, update in adapter.items():
        tensors |= {f"adapter.{name}.down": update.down, f"adapter.{name}.up": update.up}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in on_cpu.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(halves))  # save_file would restrict the permissions to the owner
    plain = {f.name: getattr(description, f.name) for f in fields(Description)}
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, **plain}, indent=1) + "\n", encoding="utf-8")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint. NotFound without one, Incompatible for another format."""
    description = describe(folder)
    tensors = load_file(folder / WEIGHTS)
    layers = {name.removeprefix("adapter.").rpartition(".")[0] for name in tensors if name.startswith("adapter.")}
    adapter = {
        layer: LowRankUpdate(
            tensors[f"adapter.{layer}.down"].float(), tensors[f"adapter.{layer}.up"].float(), description.adapter_scale
        )
        for layer in sorted(layers)
    }
    head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    head = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in head.items()}
    return Checkpoint(description, head, adapter)


def describe(folder: Path) -> Description:
    """What model.json in a folder says. NotFound without one, Incompatible for another format."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise NotFound(f"{folder} holds no {DESCRIPTION}: it is not a model that chamfer train wrote")
    plain = json.loads(path.read_text(encoding="utf-8"))
    if (version := plain.pop("format", None)) != FORMAT:
        raise Incompatible(f"{path} has format {version!r}, this version of Chamfer reads {FORMAT}")
    if plain["backbone"] == ITSELF:
        plain["backbone"] = str(folder)
    return Description(**{**plain, "features": tuple(plain["features"])})


def fingerprint(folder: Path) -> str:
    """SHA-256 over everything that changes an output: backbone, tokenizer, trained weights and description."""
    backbone = folder_of(describe(folder).backbone)
    digests = [weights_digest(backbone), file_digest(backbone / "tokenizer.json")]
    return digest_of(*digests, file_digest(folder / WEIGHTS), file_digest(folder / DESCRIPTION))


def weights_digest(backbone: Path) -> str:
    """SHA-256 over the weights of a backbone, whether in one file or in several."""
    digests = [file_digest(path) for path in sorted(backbone.glob("model*.safetensors"))]
    return digests[0] if len(digests) == 1 else digest_of("shards", *digests)


def open_trained_tower(description: Description, adapter: Mapping[str, LowRankUpdate]) -> Tower:
    """The backbone with the adapter merged in, in evaluation mode."""
    tower = open_tower(description.backbone, description.features, dropout=0.0, attention=description.attention)
    merge_adapter(tower.transformer, adapter)
    return tower.eval()
