"""The peer of the reranking benchmark: predict of sentence-transformers returns the scores of our reranker."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.plain_cross import plain_cross_encoder
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import WEIGHTS, load_reranker


def test_predict_gives_the_scores_of_the_trained_reranker() -> None:
    texts = ["A fox lost his tail in a trap.", "A crow dropped pebbles. " * 60, "tail"]
    ours = load_reranker("mini-cross", DeviceConfig(device="cpu", backend="torch"))
    expected = ours.score(Query("q", "who lost his tail"), [Document(str(i), text) for i, text in enumerate(texts)])
    plain = plain_cross_encoder(WEIGHTS / "mini-cross")
    scores = plain.predict([("who lost his tail", text) for text in texts], show_progress_bar=False)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
