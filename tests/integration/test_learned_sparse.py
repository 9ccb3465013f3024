"""Learned sparse from the command line to an answer of the service, with models of random weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_cli import chamfer
from support_models import WORDS, tiny_inference_free, tiny_splade
from support_service import SEARCH, with_fables

from chamfer.api import pipeline_loader
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
from chamfer.settings import load_settings

pytestmark = pytest.mark.filterwarnings("ignore")  # sentence-transformers and transformers warn about tiny models

TEXTS = [f"w{i} w{(7 * i) % 60} w{(i * i) % 60} w3" for i in range(20)]
KINDS = {
    "splade": tiny_splade,
    "inference-free": partial(tiny_inference_free, idf=np.linspace(0.5, 4.0, len(WORDS), dtype=np.float32)),
}


def dense(vectors: Any) -> Any:
    matrix = np.zeros((len(vectors), vectors.vocabulary))
    for i in range(len(vectors)):
        span = slice(vectors.offsets[i], vectors.offsets[i + 1])
        matrix[i, vectors.terms[span]] = vectors.weights[span]
    return matrix


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_model_by_path_is_built_and_served_exactly(kind: str, tmp_path: Path) -> None:
    name = f"sparse:{KINDS[kind](tmp_path)}"
    lines = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    words = ("--out", str(tmp_path / "c"), "--channels", "sparse", "--encoder", name)
    done = chamfer("build", str(tmp_path / "corpus.jsonl"), *words)
    assert done.returncode == 0, done.stderr
    encoder = load_encoder(name, DeviceConfig())
    stored = encoder.encode_documents([Document("", text) for text in TEXTS], [VectorKind.SPARSE]).sparse
    query = encoder.encode_queries([Query("q", "w9 w2 w5")], [VectorKind.SPARSE]).sparse
    scores = (dense(query) @ dense(stored).T)[0]
    order = [row for row in np.argsort(-scores, kind="stable")[:5] if scores[row] > 0]

    async def search(client: Any) -> None:
        plan = {"channels": {"sparse": {}}, "fusion": {"method": "interpolation", "normalisation": "none"}}
        answer = (await client.post(SEARCH, json={"query": "w9 w2 w5", "k": 5, "plan": plan})).json()
        served = [hit["score"] for hit in answer["hits"]]
        np.testing.assert_allclose(served, scores[order], rtol=1e-4)
        assert sorted(served, reverse=True) == served

    with_fables(search, load=pipeline_loader(load_settings()), path=tmp_path / "c")
