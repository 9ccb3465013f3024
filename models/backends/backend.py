"""Where weights meet the machine: device, backend and precision are decided here, once.

On a CPU the backend is OpenVINO, converted by its own front end from the loaded torch module, in bfloat16 where the
processor has it; docs/benchmarks.md holds the measurement behind that. ONNX Runtime is there for rerankers on
processors without bfloat16, where its int8 is twice as fast as fp32. On CUDA the backend is torch. A converted graph is
kept in a cache directory under the fingerprint of its weights, so that a second start needs no torch at all.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.core.types import F32, Array

if TYPE_CHECKING:
    import torch

Graph = TypeVar("Graph")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where and how models run. `auto` is decided once, by `decide`.

    batch_tokens bounds the padded tokens of one forward pass; threads 0 leaves the number to the backend;
    cache_dir keeps converted graphs (None: convert at every start); allow_download lets hub names be fetched.
    int8 exists with the backend onnx, for rerankers: dynamic quantisation of the matrix products.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    threads: int = 0
    batch_tokens: int = 4096
    cache_dir: Path | None = None
    allow_download: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What `auto` came to."""

    device: str
    backend: str
    precision: str


Example = tuple[tuple[tuple[int, ...], str], ...]
"""Shape and dtype of every input."""


class Backbone(Protocol):
    """A network whose inputs are arrays: mostly token ids and mask i64 [B, L] (1 for real tokens)."""

    def __call__(self, *inputs: Array) -> F32:
        """Its one output, f32; of a transformer the hidden states [B, L, H]."""
        ...


def decide(config: DeviceConfig) -> Decision:
    """Device, backend and precision for this machine. InvalidInput where the settings contradict it."""
    device = config.device
    if device == "auto":
        device = "cuda" if _cuda_driver_present() and _cuda_available() else "cpu"
    elif device == "cuda" and not _cuda_available():
        raise InvalidInput("device is cuda, but torch sees no CUDA device; set models.device.device to cpu or auto")
    backend = config.backend
    if backend == "auto":
        backend = "openvino" if device == "cpu" else "torch"
    if backend != "torch" and device == "cuda":
        raise InvalidInput(f"backend {backend} runs on the CPU; set models.device.backend to torch for cuda")
    precision = config.precision
    if (precision == "int8" and backend != "onnx") or (precision == "bf16" and backend == "onnx"):
        raise InvalidInput(f"precision {precision} does not exist with backend {backend}: int8 is onnx's, bf16 is not")
    if precision == "auto":
        precision = "bf16" if device == "cuda" or (backend == "openvino" and _cpu_has_bf16()) else "fp32"
    return Decision(device, backend, precision)


def load_backbone(
    module: Callable[[], torch.nn.Module], fingerprint: str, config: DeviceConfig, example: Example | None = None
) -> Backbone:
    """The network on the decided device. `module` is called only if needed.

    Its inputs are ids and mask unless `example` gives others: their shapes [2, 8, ...] and dtypes, for conversion.
    """
    decision = decide(config)
    if decision.backend == "torch":
        return TorchBackbone(module(), decision, config)
    shapes = example or token_inputs(2)
    name = f"{fingerprint[:24]}-{decision.backend}"
    if decision.backend == "onnx":
        from chamfer.models.backends.onnx import OnnxBackbone, export

        int8 = decision.precision == "int8"
        model = _kept(
            f"{name}-{version('onnxruntime')}-{decision.precision}",
            config.cache_dir,
            make=lambda: export(module(), shapes, int8=int8),
            save=lambda graph, folder: (folder / "graph.onnx").write_bytes(graph),
            read=lambda folder: (folder / "graph.onnx").read_bytes(),
        )
        return OnnxBackbone(model, config.threads)
    graph = _kept(
        f"{name}-{version('openvino')}",
        config.cache_dir,
        make=lambda: _convert(module(), shapes),
        save=_save_openvino,
        read=_read_openvino,
    )
    return OpenVinoBackbone(graph, decision, config)


def token_inputs(n: int) -> Example:
    """The example of a module that takes n arrays of token ids, masks and the like."""
    return (((2, 8), "int64"),) * n


class TorchBackbone:
    """A torch module in evaluation mode."""

    def __init__(self, module: torch.nn.Module, decision: Decision, config: DeviceConfig) -> None:
        import torch

        if config.threads and decision.device == "cpu":
            torch.set_num_threads(config.threads)
        dtype = torch.bfloat16 if decision.precision == "bf16" else torch.float32
        self._module = module.eval().to(decision.device, dtype)
        self._device = decision.device
        self._dtype = dtype

    def __call__(self, *inputs: Array) -> F32:
        import torch

        tensors = [torch.from_numpy(array).to(self._device) for array in inputs]
        with torch.inference_mode():
            out = self._module(*[t.to(self._dtype) if t.is_floating_point() else t for t in tensors])
        hidden: F32 = out.float().cpu().numpy()
        return hidden


class OpenVinoBackbone:
    """A compiled OpenVINO graph. Threads may call it at the same time: each has its own request."""

    def __init__(self, graph: Any, decision: Decision, config: DeviceConfig) -> None:
        import openvino

        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if decision.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if config.threads:
            properties["INFERENCE_NUM_THREADS"] = config.threads
        self._compiled = openvino.Core().compile_model(graph, "CPU", properties)
        self._requests = threading.local()

    def __call__(self, *inputs: Array) -> F32:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        request.infer(list(inputs), share_inputs=True)
        hidden: F32 = np.array(request.get_output_tensor(0).data, dtype=np.float32)
        return hidden


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the load report and tracing remarks of transformers, which alarm users about parts nobody uses."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _kept(
    name: str,
    cache_dir: Path | None,
    *,
    make: Callable[[], Graph],
    save: Callable[[Graph, Path], object],
    read: Callable[[Path], Graph],
) -> Graph:
    """The converted graph of this name: from the cache if it is there, else made (and kept)."""
    if cache_dir is None:
        return make()
    folder = cache_dir / name
    if folder.exists():
        return read(folder)
    graph = make()
    try:
        _keep(folder, lambda temporary: save(graph, temporary))
    except OSError:
        return graph  # the cache is a convenience: a read-only or full disk must not stop the service
    return read(folder)


def _keep(folder: Path, write: Callable[[Path], object]) -> None:
    temporary = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # another process may have been first
            raise


def _save_openvino(graph: Any, folder: Path) -> None:
    import openvino

    openvino.save_model(graph, folder / "graph.xml", compress_to_fp16=False)


def _read_openvino(folder: Path) -> Any:
    import openvino

    return openvino.Core().read_model(folder / "graph.xml")


def _convert(module: torch.nn.Module, example: Example) -> Any:
    """The graph of a torch module, through the PyTorch front end itself.

    openvino.convert_model would do the same, but reports usage over the network.
    """
    import warnings

    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    inputs = tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape, dtype in example)
    with warnings.catch_warnings(), torch.inference_mode(), quiet_transformers():
        warnings.simplefilter("ignore")  # tracing warns about shape arithmetic that stays correct for any shape
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=inputs)
    front_end = FrontEndManager().load_by_framework("pytorch")
    if front_end is None:
        raise Unavailable("this OpenVINO has no PyTorch front end; set models.device.backend to torch")
    return front_end.convert(front_end.load(decoder))


def _cpu_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _cuda_driver_present() -> bool:
    # Spares CPU machines the import of torch at every start.
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists()


def _cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
