"""A torch module through ONNX Runtime, in fp32 or with dynamically quantised matrix products (int8). Extra `onnx`."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.errors import Unavailable
from chamfer.core.types import F32, Array

if TYPE_CHECKING:
    import torch

    from chamfer.models.backends.backend import Example


class OnnxBackbone:
    """An ONNX session on the CPU. Threads may call it at the same time."""

    def __init__(self, model: bytes, threads: int) -> None:
        runtime = _module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, *inputs: Array) -> F32:
        """See chamfer.models.backends.backend.Backbone."""
        [out] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return np.asarray(out, dtype=np.float32)


def export(module: torch.nn.Module, shapes: Example, *, int8: bool) -> bytes:
    """The ONNX model of a module that takes arrays of these shapes and dtypes; the first two axes stay free."""
    import torch

    _module("onnx")
    names = [f"input_{place}" for place in range(len(shapes))]
    example = tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape, dtype in shapes)
    out = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the older exporter, which alone keeps both axes free for every model
        torch.onnx.export(
            module.eval(),
            example,
            out,  # type: ignore[arg-type]  # the older exporter writes into a stream
            input_names=names,
            dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
            dynamo=False,
        )
    return _quantised(out.getvalue()) if int8 else out.getvalue()


def _quantised(model: bytes) -> bytes:
    import logging

    quantization = _module("onnxruntime.quantization")
    root = logging.getLogger()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        level = root.level
        root.setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
        try:
            quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)
        finally:
            root.setLevel(level)
        return target.read_bytes()


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"backend onnx needs {name}: install chamfer[onnx] ({error})") from error
