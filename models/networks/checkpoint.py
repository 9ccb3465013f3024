"""Folders of trained models: what `chamfer train` writes, what the catalogue ships, and how weights come back.

DIR/model.json   format, kind, backbone, features, limits, head configuration, scale of the adapter
DIR/weights.safetensors   head.* and adapter.LAYER.down / .up, f16
Beside them a card, the recipe and the report. An adapter is folded into the backbone when the model is opened, so that
it costs nothing later and needs no PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chamfer.core.artifact import digest_of, file_digest
from chamfer.core.errors import Incompatible, NotFound
from chamfer.models.networks.transformer import Attention, Fold, Tower, fold, folder_of, open_tower

FORMAT = 1
DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
ITSELF = "."


@dataclass(frozen=True, kw_only=True)
class Description:
    """kind: tokens, sparse, dense or cross. Limits count tokens with specials; pairs share document_tokens.

    backbone "." on disk is the folder itself (a compressed model), which `describe` names in full.
    adapted: the adapter changes both sides, or queries alone (a model trained against a frozen bank).
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


def save(folder: Path, description: Description, head: Mapping[str, Any], adapter: Mapping[str, Fold]) -> None:
    """Writes description and weights; tensors of real numbers are kept as f16."""
    from safetensors.torch import save as serialised

    tensors = {f"head.{name}": tensor for name, tensor in head.items()}
    for name, change in adapter.items():
        tensors |= {f"adapter.{name}.down": change.down, f"adapter.{name}.up": change.up}
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(serialised(halves))  # with the permissions of any other file
    plain = {name: getattr(description, name) for name in description.__dataclass_fields__}
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, **plain}, indent=1) + "\n", encoding="utf-8")


def describe(folder: Path) -> Description:
    """The description in a folder. NotFound without one, Incompatible for another format."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise NotFound(f"{folder} holds no {DESCRIPTION}: it is not a model that chamfer train wrote")
    plain = json.loads(path.read_text(encoding="utf-8"))
    if (found := plain.pop("format", None)) != FORMAT:
        raise Incompatible(f"{path} has format {found!r}, this version reads {FORMAT}")
    if plain["backbone"] == ITSELF:
        plain["backbone"] = str(folder)
    return Description(**{**plain, "features": tuple(plain["features"])})


def fingerprint(folder: Path, description: Description) -> str:
    """SHA-256 over all that moves a vector: backbone, tokenizer, trained weights and description."""
    backbone = folder_of(description.backbone)
    digests = [weights_digest(backbone), file_digest(backbone / "tokenizer.json")]
    return digest_of(*digests, file_digest(folder / WEIGHTS), file_digest(folder / DESCRIPTION))


def weights_digest(backbone: Path) -> str:
    """SHA-256 over the weights of a backbone, whether in one file or in several."""
    digests = [file_digest(path) for path in sorted(backbone.glob("model*.safetensors"))]
    return digests[0] if len(digests) == 1 else digest_of("shards", *digests)


def parts_of(folder: Path, description: Description) -> tuple[dict[str, Any], dict[str, Fold]]:
    """The state of the head, f32, and the changes of the adapter by layer."""
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    names = {name.removeprefix("adapter.").rpartition(".")[0] for name in tensors if name.startswith("adapter.")}
    changes = {
        name: Fold(
            tensors[f"adapter.{name}.down"].float(), tensors[f"adapter.{name}.up"].float(), description.adapter_scale
        )
        for name in sorted(names)
    }
    head = {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}
    return {name: t.float() if t.is_floating_point() else t for name, t in head.items()}, changes


def open_trained_tower(description: Description, changes: Mapping[str, Fold]) -> Tower:
    """The backbone with the changes folded in, in evaluation mode."""
    tower = open_tower(description.backbone, description.features, dropout=0.0, attention=description.attention)
    fold(tower.transformer, changes)
    return tower.eval()
