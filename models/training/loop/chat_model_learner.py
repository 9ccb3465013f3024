"""What jobs share whose backbone is a language model that may see: its adapter, its images, its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.backend import DeviceConfig
from chamfer.models.networks.checkpoint import Description, save
from chamfer.models.networks.transformer import MINI
from chamfer.models.rerankers.chat_model import load_language_model
from chamfer.models.training.data.groups import read_images
from chamfer.models.training.loop.lora import adapt, changes_of
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Learner

LANGUAGE = "language_model"  # the part of a model that sees which reads; its eyes stay as they are


class LanguageLearner(Learner):
    """A chat model with LoRA in the linear layers of its language part."""

    kind: ClassVar[str]

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        if recipe.backbone == MINI or not recipe.adapter.rank:
            raise InvalidInput(
                f"job {recipe.job} adapts a chat model: set backbone to its folder and adapter.rank above 0, "
                f"found {recipe.backbone!r} and {recipe.adapter.rank}"
            )
        self.language = load_language_model(recipe.backbone, DeviceConfig(device="cpu", precision="fp32"))
        self.tower = self.language.module.requires_grad_(False)
        sees = any(LANGUAGE in name for name, _ in self.tower.named_modules())
        adapt(self.tower, recipe.adapter, within=LANGUAGE if sees else "")
        self._images = read_images(recipe.data.documents) if self.language.reads_images else {}

    def query(self, text: str, image: Path | bytes | None) -> Query:
        """The query as the model is shown it, cut to query_tokens."""
        seen = image if self.language.reads_images else None
        return Query("", self.language.shortened(text, self.recipe.query_tokens), seen)

    def documents(self, doc_ids: Sequence[str], texts: Sequence[str]) -> list[Document]:
        """The documents as the model is shown them, cut to document_tokens."""
        limit = self.recipe.document_tokens
        return [
            Document(doc_id, self.language.shortened(text, limit), image=self._images.get(doc_id))
            for doc_id, text in zip(doc_ids, texts, strict=True)
        ]

    def description(self) -> Description:
        """What the saved folder says."""
        return Description(
            kind=self.kind,
            backbone=self.recipe.backbone,
            features=(),
            query_tokens=self.recipe.query_tokens,
            document_tokens=self.recipe.document_tokens,
            adapter_scale=self.recipe.adapter.scale,
        )

    def save(self, folder: Path) -> None:
        save(folder, self.description(), {}, changes_of(self.tower, self.recipe.adapter.scale))
