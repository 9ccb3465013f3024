"""Example inputs, with which a torch module is traced when it is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ExampleInputs = tuple[tuple[tuple[int, ...], str], ...]
"""Shape and dtype of every input; the first two axes, batch and length, stay free."""


def token_inputs(n: int) -> ExampleInputs:
    """The inputs of a module that takes n arrays of token ids, masks and the like, i64 [B, L] each."""
    return (((2, 8), "int64"),) * n


def example_tensors(inputs: ExampleInputs) -> tuple[torch.Tensor, ...]:
    """A tensor of ones for every input."""
    import torch

    return tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape, dtype in inputs)
