"""The loader: models are loaded once and shared, and a collection of another encoder is refused and closed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support_service import FakeCollection, LengthReranker, RecordingEncoder, collection

from chamfer.core.errors import Incompatible
from chamfer.service.runtime.pipeline_loader import PipelineLoader
from chamfer.service.search.plans import ChannelPlan, Plan
from chamfer.service.search.request import SearchRequest, SearchResult


class Shop:
    """Replaces the loading of collections and models; records what was loaded."""

    def __init__(self) -> None:
        self.fetched: list[tuple[str, Any]] = []
        self.opened: list[FakeCollection] = []
        self.fingerprint: str | None = "hash"
        self.encoder_name: str | None = "hash"

    def open(self, path: Path) -> FakeCollection:
        opened = replace(collection(), encoder_name=self.encoder_name, encoder_fingerprint=self.fingerprint)
        self.opened.append(opened)
        return opened

    def load_encoder(self, name: str, device: Any) -> RecordingEncoder:
        self.fetched.append((name, device))
        return RecordingEncoder()

    def load_reranker(self, name: str, device: Any) -> LengthReranker:
        self.fetched.append((name, device))
        return LengthReranker()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop()
    collections, models = ModuleType("chamfer.indexing.collection.collection"), ModuleType("chamfer.models.registry")
    collections.Collection = shop  # type: ignore[attr-defined]
    models.load_encoder, models.load_reranker = shop.load_encoder, shop.load_reranker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chamfer.indexing.collection.collection", collections)
    monkeypatch.setitem(sys.modules, "chamfer.models.registry", models)
    return shop


def test_a_model_is_loaded_once_and_shared_by_collections_and_snapshots(shop: Shop) -> None:
    load = PipelineLoader("cpu", rerankers=["length"])
    first, second = load(Path("a")), load(Path("b"))
    assert shop.fetched == [("hash", "cpu"), ("length", "cpu")]
    assert first.encoder is second.encoder
    assert first.rerankers["length"] is second.rerankers["length"]
    [answer] = first.run([SearchRequest(query="fox", plan="best")])
    assert isinstance(answer, SearchResult)
    assert answer.plan.plan.rerank is not None


def test_configured_plans_are_offered(shop: Shop) -> None:
    load = PipelineLoader("cpu", plans={"mine": Plan(channels={"lexical": ChannelPlan(depth=7)})})
    [answer] = load(Path("a")).run([SearchRequest(query="pebbles", plan="mine")])
    assert isinstance(answer, SearchResult)
    assert answer.plan.name == "mine"


def test_a_collection_of_another_encoder_is_refused_and_closed(shop: Shop) -> None:
    shop.fingerprint = "0123456789abcdef0123"
    with pytest.raises(Incompatible, match=r"0123456789abcdef….*or build the collection again"):
        PipelineLoader("cpu")(Path("a"))
    assert shop.opened[0].closed


def test_a_collection_without_vectors_needs_no_encoder(shop: Shop) -> None:
    shop.encoder_name = shop.fingerprint = None
    searching = PipelineLoader("cpu")(Path("a"))
    assert shop.fetched == []
    assert searching.capabilities.channels == ("lexical",)
