"""Low-rank adapters (LoRA, arXiv 2106.09685) by PEFT, put into the linear layers of any transformer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.models.networks.transformer import Fold, Tower
from chamfer.models.training.loop.recipe import AdapterConfig


def adapt(transformer: Any, config: AdapterConfig, within: str = "") -> list[str]:
    """Puts LoRA into the linear layers that the config and `within` name; only those then learn. Returns their names.

    InvalidInput where there are none.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Unavailable("adapters need PEFT: pip install 'chamfer[train]'") from None
    names = linear_layers(transformer, config.targets, config.first_layer, within)
    if not names:
        raise InvalidInput(
            f"the backbone has no linear layer named {', '.join(config.targets)} from layer {config.first_layer} on; "
            "set adapter.targets and adapter.first_layer"
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
            module.cast_input_dtype_enabled = False  # under autocast it would go to f32 and back
    return names


@contextmanager
def quick(tower: Tower, precision: str) -> Iterator[None]:
    """Within it the tower trains faster and computes the same: under autocast frozen linear weights are kept in bf16
    instead of cast at every use, and on a CPU attention is written out, whose backward pass beats the fused one's."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    attention = tower.transformer.config._attn_implementation
    if precision == "bf16":
        linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
        frozen = [p for module in linear for p in module.parameters() if not p.requires_grad]
        kept = [(p, p.data) for p in frozen]
        for p in frozen:
            p.data = p.data.bfloat16()
    if not tower.vocabulary.is_cuda:
        tower.transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.transformer.set_attn_implementation(attention)
        for p, whole in kept:
            p.data = whole.to(p.device)


def linear_layers(transformer: nn.Module, targets: Sequence[str], first_layer: int, within: str = "") -> list[str]:
    """Names of linear layers that end in one of `targets`, from `first_layer` on, and have `within` in their path."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in targets
        and within in name
        and (number := re.search(r"\.(\d+)\.", name)) is not None
        and int(number.group(1)) >= first_layer
    ]


def shrink(transformer: nn.Module, share: float) -> None:
    """Leaves that share of the low-rank changes."""
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if ".lora_B." in name:
                weight.mul_(share)


def changes_of(transformer: nn.Module, scale: float) -> dict[str, Fold]:
    """The low-rank changes by name of the layer."""
    return {
        name: Fold(module.lora_A["default"].weight, module.lora_B["default"].weight, scale)
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A")
    }
