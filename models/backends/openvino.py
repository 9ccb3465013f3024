"""A torch module converted to an OpenVINO graph by OpenVINO's own PyTorch front end, on the CPU."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.errors import Unavailable
from chamfer.core.types import F32, Array
from chamfer.models.backends.config import Decision
from chamfer.models.backends.example_inputs import ExampleInputs, example_tensors
from chamfer.models.backends.hub import quiet_transformers
from chamfer.models.backends.openvino_import import import_openvino

if TYPE_CHECKING:
    import torch

_GRAPH = "graph.xml"


class OpenVinoBackbone:
    """A compiled OpenVINO graph. Threads may call it at the same time: each has its own inference request."""

    def __init__(self, graph: Any, decision: Decision, threads: int) -> None:
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if decision.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        self._compiled = import_openvino().Core().compile_model(graph, "CPU", properties)
        self._requests = threading.local()

    def __call__(self, *inputs: Array) -> F32:
        """See chamfer.models.backends.backend.Backbone."""
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        request.infer(list(inputs), share_inputs=True)
        hidden: F32 = np.array(request.get_output_tensor(0).data, dtype=np.float32)
        return hidden


def convert(module: torch.nn.Module, inputs: ExampleInputs) -> Any:
    """The OpenVINO graph of a torch module; the first two axes of its inputs stay free.

    openvino.convert_model does the same, but belongs to the tool that reports usage over the network.
    """
    import torch

    example = example_tensors(inputs)
    tracing = import_openvino("openvino.frontend.pytorch.ts_decoder")
    with warnings.catch_warnings(), torch.inference_mode(), quiet_transformers():
        warnings.simplefilter("ignore")  # tracing warns about shape arithmetic that is right for every shape
        decoder = tracing.TorchScriptPythonDecoder(module.eval(), example_input=example)
    front_end = import_openvino("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    if front_end is None:
        raise Unavailable("this OpenVINO has no PyTorch front end; set models.device.backend to torch")
    return front_end.convert(front_end.load(decoder))


def write_graph(graph: Any, folder: Path) -> None:
    """Writes a graph into a folder, weights uncompressed."""
    import_openvino().save_model(graph, folder / _GRAPH, compress_to_fp16=False)


def read_graph(folder: Path) -> Any:
    """The graph that `write_graph` wrote."""
    return import_openvino().Core().read_model(folder / _GRAPH)
