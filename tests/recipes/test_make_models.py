"""`make models` from nothing, on synthetic sets: all models and their first stages, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support_beir import write_sets

from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder, load_reranker

ROOT = Path(__file__).resolve().parents[2]
DEVICE = DeviceConfig(backend="torch", threads=1)


@pytest.mark.slow
def test_one_command_makes_every_model_and_resumes_after_a_kill(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    data, into = write_sets(tmp_path / "data", documents=16), tmp_path / "into"
    # The environment of the tests replaces the one that make would install.
    given = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.dev", f"DATA={data}", f"INTO={into}"]
    command = [
        "make",
        "models",
        *given,
        "SET=--set data.max_train_groups=16 --set fit.save_steps=1 --set data.max_eval_groups=4",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(into.glob("var/mini/mini-cross-first/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    weights = into / "models" / "weights"
    for name in ("mini-late", "mini-sparse"):
        kind = VectorKind.TOKENS if name == "mini-late" else VectorKind.SPARSE
        encoder = load_encoder(f"trained:{weights / name}", DEVICE)
        vectors = encoder.encode_documents([Document("d", "the fox in the castle")], [kind]).vectors(kind)
        assert vectors is not None
        assert len(vectors) == 1
    for folder in (into / "var" / "mini" / "mini-cross-first", weights / "mini-cross"):
        scores = load_reranker(str(folder), DEVICE).score(Query("q", "fox"), [Document("d", "the fox"), Document("e")])
        assert scores.shape == (2,)
    report = json.loads((into / "var" / "mini" / "mini-cross-first" / "report.json").read_text())
    assert report["resumed_at"] >= 1
