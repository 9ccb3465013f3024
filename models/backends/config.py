"""Where and how models run: the settings, and the one decision about device, backend and precision.

On a CPU the backend is OpenVINO, in bfloat16 where the processor supports it; docs/benchmarks.md has the measurement.
ONNX Runtime serves rerankers on processors without bfloat16, where its int8 is twice as fast as fp32. On CUDA the
backend is torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.openvino_import import cpu_has_bf16


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where and how models run. `decide` resolves every `auto`.

    threads          CPU threads of one forward pass; 0 leaves the number to the backend
    batch_tokens     upper bound on the padded tokens of one forward pass
    cache_dir        where converted graphs are kept; None converts at every start
    allow_download   whether hub names may be downloaded
    precision        int8 (dynamically quantised matrix products) exists for rerankers with the backend onnx
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
    """A DeviceConfig without `auto`."""

    device: str
    backend: str
    precision: str


def decide(config: DeviceConfig) -> Decision:
    """Device, backend and precision for this machine. InvalidInput if the settings contradict it or each other."""
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
        raise InvalidInput(
            f"precision {precision} does not exist with backend {backend}: int8 needs onnx, bf16 needs torch or "
            "openvino; set models.device.precision or models.device.backend"
        )
    if precision == "auto":
        precision = "bf16" if device == "cuda" or (backend == "openvino" and cpu_has_bf16()) else "fp32"
    return Decision(device, backend, precision)


def _cuda_driver_present() -> bool:
    # Spares CPU machines the import of torch at every start.
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists()


def _cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
