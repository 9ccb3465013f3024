"""Searches whose query has an image: channels search by the text, cross-encoders that read images see both."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from support_judges import picture
from support_service import SEARCH, LengthReranker, PairReranker, pipeline, with_fables

from chamfer.service.search.pipeline import Pipeline

PICTURE = picture(1)
IMAGE = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
REQUEST = {"query": "fox tail", "image": IMAGE, "k": 8}


def plan(model: str | None) -> dict[str, Any]:
    channels: dict[str, Any] = {"dense": {}, "lexical": {}}
    return {"channels": channels, **({"rerank": {"model": model, "depth": 8}} if model else {})}


class ImageReranker(PairReranker):
    """Records the queries that it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, Any]] = []

    def score_pairs(self, pairs: Any) -> Any:
        self.shown += [(query.text, query.image) for query, _ in pairs]
        return super().score_pairs(pairs)


def test_the_reranker_sees_the_image_and_the_channels_the_text() -> None:
    reranker = ImageReranker()

    def load(_: Path) -> Pipeline:
        return pipeline(rerankers={"images": reranker})

    async def check(client: Any) -> None:
        reranker.shown.clear()
        answer = (await client.post(SEARCH, json={**REQUEST, "plan": plan("images")})).raise_for_status().json()
        assert set(reranker.shown) == {("fox tail", PICTURE)}
        plain = (await client.post(SEARCH, json={"query": "fox tail", "k": 8, "plan": plan(None)})).json()
        assert {hit["doc_id"] for hit in answer["hits"]} == {hit["doc_id"] for hit in plain["hits"]}

    with_fables(check, load=load)


def test_a_plan_that_cannot_read_the_image_is_refused_with_the_rerankers_that_can() -> None:
    def load(_: Path) -> Pipeline:
        return pipeline(rerankers={"length": LengthReranker(), "images": ImageReranker()})

    async def check(client: Any) -> None:
        for model, reason in (("length", "reranker length reads text only"), (None, "it has no reranker")):
            answer = await client.post(SEARCH, json={**REQUEST, "plan": plan(model)})
            assert answer.status_code == 400
            assert reason in answer.json()["detail"]
            assert "loaded rerankers that read images: images (models.rerankers)" in answer.json()["detail"]

    with_fables(check, load=load)


def test_a_source_that_is_not_allowed_or_not_an_image_is_refused_with_its_pointer() -> None:
    def load(_: Path) -> Pipeline:
        return pipeline(rerankers={"images": ImageReranker()})

    async def check(client: Any) -> None:
        for source in ("http://169.254.169.254/a.png", "data:image/png;base64,%%", "file:///etc/passwd", "fox"):
            answer = await client.post(SEARCH, json={**REQUEST, "image": source, "plan": plan("images")})
            assert answer.status_code == 400
            assert answer.json()["errors"][0]["pointer"] == "/image"
        searches = [{**REQUEST, "plan": plan("images")}, {**REQUEST, "image": "ftp://x/y.png"}, {"query": "crow"}]
        answer = (await client.post(f"{SEARCH}:batch", json={"searches": searches})).json()
        assert ["error" in result for result in answer["results"]] == [False, True, False]
        assert answer["results"][1]["error"]["errors"][0]["pointer"] == "/searches/1/image"
        many = await client.post(f"{SEARCH}:batch", json={"searches": [{**REQUEST, "image": "x"}] * 65})
        assert many.status_code == 413
        assert "reranking.images.max_images" in many.json()["detail"]

    with_fables(check, load=load)
