"""The only place where Chamfer imports OpenVINO.

`import openvino` also imports its model conversion tool, which reports every start to an analytics host unless the
environment variable CI is set (package `openvino_telemetry`). Chamfer sends nothing: the reporting package is hidden
before the import, and OpenVINO falls back to the stub that it ships for installations without it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

_REPORTING = "openvino_telemetry"


def import_openvino(module: str = "openvino") -> Any:
    """OpenVINO, or one of its submodules by full name, imported without its usage reports.

    A process that imported OpenVINO before calling this keeps that import.
    """
    if "openvino" not in sys.modules:
        reporting = sys.modules.get(_REPORTING)
        sys.modules[_REPORTING] = None  # type: ignore[assignment]  # makes an import of it raise ImportError
        try:
            import_module("openvino")
        finally:
            if reporting is not None:
                sys.modules[_REPORTING] = reporting  # imported before: its owner keeps it
    return import_module(module)


def cpu_has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
