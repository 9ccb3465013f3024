"""A network on the decided backend: torch as it is, or converted for OpenVINO or ONNX Runtime.

A converted graph is kept in a cache directory under the fingerprint of its weights, so that a second start needs no
torch at all.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from chamfer.core.types import F32, Array
from chamfer.models.backends import onnx, openvino
from chamfer.models.backends.config import DeviceConfig, decide
from chamfer.models.backends.example_inputs import ExampleInputs, token_inputs
from chamfer.models.backends.graph_cache import cached_graph
from chamfer.models.backends.torch import TorchBackbone

if TYPE_CHECKING:
    import torch


class Backbone(Protocol):
    """A network whose inputs are arrays: mostly token ids and mask i64 [B, L] (1 for real tokens)."""

    def __call__(self, *inputs: Array) -> F32:
        """Its one output, f32; of a transformer the hidden states [B, L, H]."""
        ...


def load_backbone(
    module: Callable[[], torch.nn.Module], fingerprint: str, config: DeviceConfig, inputs: ExampleInputs | None = None
) -> Backbone:
    """The network on the decided device. `module` is called only where no converted graph is cached.

    Its inputs are token ids and mask unless `inputs` says otherwise. `fingerprint` identifies network and weights.
    Raises InvalidInput for contradictory settings, Unavailable for a backend that is not installed.
    """
    decision = decide(config)
    if decision.backend == "torch":
        return TorchBackbone(module(), decision, config.threads)
    example = inputs or token_inputs(2)
    name = f"{fingerprint[:24]}-{decision.backend}"
    if decision.backend == "onnx":
        int8 = decision.precision == "int8"
        model = cached_graph(
            f"{name}-{version('onnxruntime')}-{decision.precision}",
            config.cache_dir,
            make=lambda: onnx.export(module(), example, int8=int8),
            write=onnx.write_graph,
            read=onnx.read_graph,
        )
        return onnx.OnnxBackbone(model, config.threads)
    graph = cached_graph(
        f"{name}-{version('openvino')}",
        config.cache_dir,
        make=lambda: openvino.convert(module(), example),
        write=openvino.write_graph,
        read=openvino.read_graph,
    )
    return openvino.OpenVinoBackbone(graph, decision, config.threads)
