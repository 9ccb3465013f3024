"""The learner of jobs whose backbone is a chat model: its adapter, the images of the data, the finished folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.chat_model import load_language_model
from chamfer.models.networks.checkpoint import Description, write_checkpoint
from chamfer.models.networks.features import MINI
from chamfer.models.training.data.groups import read_images
from chamfer.models.training.loop.learner import Learner
from chamfer.models.training.loop.lora import adapt, adapter_updates
from chamfer.models.training.loop.recipe import Recipe

LANGUAGE_PART = "language_model"  # of a multimodal model; its vision part stays frozen


class ChatModelLearner(Learner):
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
        multimodal = any(LANGUAGE_PART in name for name, _ in self.tower.named_modules())
        adapt(self.tower, recipe.adapter, within=LANGUAGE_PART if multimodal else "")
        self._images = read_images(recipe.data.documents) if self.language.reads_images else {}

    def query(self, text: str, image: Path | bytes | None) -> Query:
        """The query, cut to query_tokens, with its image if the model reads images."""
        readable = image if self.language.reads_images else None
        return Query("", self.language.shortened(text, self.recipe.query_tokens), readable)

    def documents(self, doc_ids: Sequence[str], texts: Sequence[str]) -> list[Document]:
        """The documents, cut to document_tokens, with their images if the model reads images."""
        limit = self.recipe.document_tokens
        return [
            Document(doc_id, self.language.shortened(text, limit), image=self._images.get(doc_id))
            for doc_id, text in zip(doc_ids, texts, strict=True)
        ]

    def description(self) -> Description:
        """What model.json of the finished model says."""
        return Description(
            kind=self.kind,
            backbone=self.recipe.backbone,
            features=(),
            query_tokens=self.recipe.query_tokens,
            document_tokens=self.recipe.document_tokens,
            adapter_scale=self.recipe.adapter.scale,
        )

    def save(self, folder: Path) -> None:
        """See Learner."""
        write_checkpoint(folder, self.description(), {}, adapter_updates(self.tower, self.recipe.adapter.scale))
