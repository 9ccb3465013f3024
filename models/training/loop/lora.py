"""Low-rank adapters (LoRA, arXiv 2106.09685) by PEFT in the linear layers of any transformer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.models.networks.transformer import LowRankUpdate, Tower
from chamfer.models.training.loop.recipe import AdapterConfig


def adapt(transformer: Any, config: AdapterConfig, within: str = "") -> list[str]:
    """Adds LoRA to the linear layers that the config and `within` select, and returns their names.

    Only the adapters are then trainable. InvalidInput if no layer is selected, Unavailable without PEFT.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Unavailable("adapters need PEFT: pip install 'chamfer[train]'") from None
    names = linear_layers(transformer, config.target_modules, config.first_layer, within)
    if not names:
        raise InvalidInput(
            f"the backbone has no linear layer named {', '.join(config.target_modules)} "
            f"from layer {config.first_layer} on; set adapter.target_modules and adapter.first_layer"
        )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=f"(?:{'|'.join(map(re.escape, names))})",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers is renaming
        inject_adapter_in_model(lora, transformer)
    for module in transformer.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # under autocast inputs would be cast to f32 and back
    return names


@contextmanager
def fast_forward(tower: Tower, precision: str) -> Iterator[None]:
    """A context within which the tower trains faster and computes the same.

    Under autocast, frozen linear weights are held in bf16 instead of being cast at every use. On a CPU, attention is
    computed unfused ("eager"), whose backward pass is faster there.
    """
    full: list[tuple[nn.Parameter, Tensor]] = []
    attention = tower.transformer.config._attn_implementation
    if precision == "bf16":
        linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
        frozen = [p for module in linear for p in module.parameters() if not p.requires_grad]
        full = [(p, p.data) for p in frozen]
        for p in frozen:
            p.data = p.data.bfloat16()
    if not tower.vocabulary.is_cuda:
        tower.transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.transformer.set_attn_implementation(attention)
        for p, weights in full:
            p.data = weights.to(p.device)


def linear_layers(
    transformer: nn.Module, target_modules: Sequence[str], first_layer: int, within: str = ""
) -> list[str]:
    """Names of the linear layers that end in a target module, from `first_layer` on, with `within` in their path."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in target_modules
        and within in name
        and (number := re.search(r"\.(\d+)\.", name)) is not None
        and int(number.group(1)) >= first_layer
    ]


def scale_adapter(transformer: nn.Module, factor: float) -> None:
    """Multiplies the low-rank updates by a factor."""
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if ".lora_B." in name:
                weight.mul_(factor)


def adapter_updates(transformer: nn.Module, scale: float) -> dict[str, LowRankUpdate]:
    """The low-rank updates by layer name."""
    return {
        name: LowRankUpdate(module.lora_A["default"].weight, module.lora_B["default"].weight, scale)
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A")
    }
