"""A torch module as it is, on the CPU or on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamfer.core.types import F32, Array
from chamfer.models.backends.config import Decision

if TYPE_CHECKING:
    import torch


class TorchBackbone:
    """A torch module in evaluation mode."""

    def __init__(self, module: torch.nn.Module, decision: Decision, threads: int) -> None:
        import torch

        if threads and decision.device == "cpu":
            torch.set_num_threads(threads)
        dtype = torch.bfloat16 if decision.precision == "bf16" else torch.float32
        self._module = module.eval().to(decision.device, dtype)
        self._device = decision.device
        self._dtype = dtype

    def __call__(self, *inputs: Array) -> F32:
        """See chamfer.models.backends.backend.Backbone."""
        import torch

        tensors = [torch.from_numpy(array).to(self._device) for array in inputs]
        with torch.inference_mode():
            output = self._module(*[t.to(self._dtype) if t.is_floating_point() else t for t in tensors])
        hidden: F32 = output.float().cpu().numpy()
        return hidden
