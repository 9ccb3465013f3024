"""Building on a device: the same code on CPU and CUDA, and a collection that opens anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support_encoders import HashEncoder, make_documents
from support_faults import fingerprint

from chamfer.core.types import Query, VectorKind
from chamfer.indexing.building.builder import BuildConfig, BuildRun, build
from chamfer.indexing.building.updates import add
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.recall_report import FloorConfig
from chamfer.indexing.families.registry import make_family

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [d for d in make_documents(150, seed=3) if d.content]
CONFIG = BuildConfig(
    channels=("fde", "lemur", "multivector"),
    parameters={"lemur": {"dim": 64, "fit_tokens": 300, "epochs": 3}},
    block_documents=32,
    sample_documents=64,
    floor=FloorConfig(recall=0.0, depth=20, queries=10),
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def on(device: str) -> BuildRun:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return BuildRun(device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_two_builds_on_a_device_have_the_same_bytes(tmp_path: Path, device: str) -> None:
    for name in ("a", "b"):
        build(DOCUMENTS, tmp_path / name, encoder=HashEncoder(), config=CONFIG, run=on(device))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.mark.parametrize("device", DEVICES)
def test_a_collection_built_on_a_device_is_searched_and_extended_on_the_cpu(tmp_path: Path, device: str) -> None:
    path = tmp_path / "c"
    build(DOCUMENTS[:100], path, encoder=HashEncoder(), config=CONFIG, run=on(device))
    add(path, DOCUMENTS[100:], encoder=HashEncoder())
    queries = [Query(f"q{i}", f"w{i} w{i + 1}") for i in range(10)]
    tokens = HashEncoder().encode_queries(queries, [VectorKind.TOKENS]).tokens
    with Collection.open(path, verify=True) as opened:
        exact = opened.channels["multivector"].retriever.search(tokens, 5)
        for channel in ("fde", "lemur"):
            retrieved = opened.channels[channel].retriever.search(tokens, 60)
            held = np.mean([np.isin(exact.of(q)[0], retrieved.of(q)[0]).mean() for q in range(10)])
            assert held > 0.7, channel


def test_the_torch_path_of_an_encoding_packs_what_the_compiled_one_does() -> None:
    pytest.importorskip("chamfer.indexing.kernels.fde_torch")
    encoding = HashEncoder().encode_documents(DOCUMENTS, [VectorKind.TOKENS])
    plain = make_family("fde", {"storage": "float16", "centred": True})
    plain = plain.with_codec(plain.learn(encoding))
    expected = plain.pack(DOCUMENTS, encoding)["values"]
    # "cpu:0" is not "cpu", hence torch's path, and needs no GPU.
    packed = plain.on_device("cpu:0").pack(DOCUMENTS, encoding)["values"]
    np.testing.assert_allclose(packed, expected, rtol=2e-3, atol=2e-3)


def test_the_gpu_benchmark_reports_a_missing_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == []
    assert "no CUDA device" in done.stderr
