"""BM25 scores shared by the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks.bm25 import bm25
from chamfer.core.types import Document


def test_bm25_is_zero_where_no_word_is_shared() -> None:
    scores = bm25([Document("a", "fox tail"), Document("b", "crow")], ["tail of a fox", "crow"])
    assert scores[0, 0] > 0
    assert scores[0, 1] == 0
    assert scores[1].tolist() == [0, pytest.approx(float(scores[1, 1]))]
