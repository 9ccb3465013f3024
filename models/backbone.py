"""Where weights meet the machine: device, backend and precision are decided here, once.

On a CPU the backend is OpenVINO, converted by its own front end from the loaded torch module, in bfloat16 where the
processor has it; docs/benchmarks.md holds the measurement behind that. On CUDA it is torch. A converted graph is
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
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from chamfer.errors import InvalidInput, Unavailable
from chamfer.types import F32, Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where and how models run. `auto` is decided once, by `decide`.

    batch_tokens bounds the padded tokens of one forward pass; threads 0 leaves the number to the backend;
    cache_dir keeps converted graphs (None: convert at every start); allow_download lets hub names be fetched.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
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
    if backend == "openvino" and device == "cuda":
        raise InvalidInput("backend openvino runs on the CPU; set models.device.backend to torch for cuda")
    precision = config.precision
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
    shapes = example or (((2, 8), "int64"), ((2, 8), "int64"))
    return OpenVinoBackbone(_graph(module, fingerprint, config.cache_dir, shapes), decision, config)


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


def _graph(module: Callable[[], torch.nn.Module], fingerprint: str, cache_dir: Path | None, example: Example) -> Any:
    """The OpenVINO graph: from the cache if it is there, else converted (and kept)."""
    import openvino

    if cache_dir is None:
        return _convert(module(), example)
    folder = cache_dir / f"{fingerprint[:24]}-openvino-{version('openvino')}"
    if not (folder / "graph.xml").exists():
        graph = _convert(module(), example)
        try:
            _keep(graph, folder)
        except OSError:
            return graph  # the cache is a convenience: a read-only or full disk must not stop the service
    return openvino.Core().read_model(folder / "graph.xml")


def _keep(graph: Any, folder: Path) -> None:
    import openvino

    temporary = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        openvino.save_model(graph, temporary / "graph.xml", compress_to_fp16=False)
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "graph.xml").exists():  # another process may have been first
            raise


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
