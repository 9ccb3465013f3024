"""Cross-encoders of `chamfer train` on hostile input: megabytes, images, a model that gives NaN.

tests/contracts has the tests that apply to all rerankers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_reranker
from chamfer.models.rerankers.trained import TrainedReranker

QUERY = Query("q", "who lost his tail")
PICTURE = b"\x89PNG"


@pytest.fixture(scope="module")
def reranker() -> TrainedReranker:
    loaded = load_reranker("mini-cross", DeviceConfig(device="cpu", precision="fp32"))
    assert isinstance(loaded, TrainedReranker)
    return loaded


def test_ten_megabytes_of_text_score_like_their_beginning(reranker: TrainedReranker) -> None:
    text = "a fox lost his tail " * 500_000
    [long, short] = reranker.score(QUERY, [Document("long", text), Document("short", text[:50_000])])
    assert long == short
    [long_query_score] = reranker.score(Query("q", text), [Document("d", "a fox")])
    assert np.isfinite(long_query_score)


def test_an_image_without_text_is_refused_and_an_image_beside_text_ignored(reranker: TrainedReranker) -> None:
    with pytest.raises(InvalidInput, match="document 'b' is an image"):
        reranker.score(QUERY, [Document("a", "fox"), Document("b", "", image=PICTURE)])
    with pytest.raises(InvalidInput, match="the query has an image"):
        reranker.score(Query("q", "fox", image=PICTURE), [Document("a", "fox")])
    [with_image, without] = reranker.score(QUERY, [Document("a", "fox", image=PICTURE), Document("a", "fox")])
    assert with_image == without


def test_only_the_pair_for_which_the_model_gives_nan_is_marked(reranker: TrainedReranker) -> None:
    sound = reranker._graph

    def broken(ids: Any, mask: Any) -> Any:
        scores = sound(ids, mask)
        scores[mask.sum(axis=1) > 40] = np.nan
        return scores

    documents = [Document("a", "fox"), Document("long", "crow " * 60), Document("b", "tail")]
    expected = reranker.score(QUERY, documents)
    reranker._graph = broken
    try:
        pair_scores = reranker.score_pairs([(QUERY, document) for document in documents])
        assert np.isnan(pair_scores).tolist() == [False, True, False]
        assert pair_scores[[0, 2]].tolist() == expected[[0, 2]].tolist()
        with pytest.raises(Internal, match="document 'long'"):
            reranker.score(QUERY, documents)
    finally:
        reranker._graph = sound
