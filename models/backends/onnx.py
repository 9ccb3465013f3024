"""A torch module through ONNX Runtime, in fp32 or with dynamically quantised matrix products (int8). Extra `onnx`."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.errors import Unavailable
from chamfer.core.types import F32, Array
from chamfer.models.backends.example_inputs import ExampleInputs, example_tensors

if TYPE_CHECKING:
    import torch

_GRAPH = "graph.onnx"


class OnnxBackbone:
    """An ONNX session on the CPU. Threads may call it at the same time."""

    def __init__(self, model: bytes, threads: int) -> None:
        runtime = _import_extra("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [declared.name for declared in self._session.get_inputs()]

    def __call__(self, *inputs: Array) -> F32:
        """See chamfer.models.backends.backend.Backbone."""
        [output] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return np.asarray(output, dtype=np.float32)


def export(module: torch.nn.Module, inputs: ExampleInputs, *, int8: bool) -> bytes:
    """The serialised ONNX model of a module; the first two axes of its inputs stay free."""
    import torch

    _import_extra("onnx")
    names = [f"input_{number}" for number in range(len(inputs))]
    model = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the older exporter, the only one that keeps both axes free for every model
        torch.onnx.export(
            module.eval(),
            example_tensors(inputs),
            model,  # type: ignore[arg-type]  # the older exporter writes into a stream
            input_names=names,
            dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
            dynamo=False,
        )
    return _quantised(model.getvalue()) if int8 else model.getvalue()


def write_graph(model: bytes, folder: Path) -> None:
    """Writes a serialised model into a folder."""
    (folder / _GRAPH).write_bytes(model)


def read_graph(folder: Path) -> bytes:
    """The model that `write_graph` wrote."""
    return (folder / _GRAPH).read_bytes()


def _quantised(model: bytes) -> bytes:
    quantization = _import_extra("onnxruntime.quantization")
    root = logging.getLogger()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        level = root.level
        root.setLevel(logging.ERROR)  # it advises a preprocessing step that changes nothing here
        try:
            quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)
        finally:
            root.setLevel(level)
        return target.read_bytes()


def _import_extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"backend onnx needs {name}: install chamfer[onnx] ({error})") from error
