"""The learner of most jobs: a tower with an adapter, and a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.token_batches import Tokenizer
from chamfer.models.networks.checkpoint import Description, open_checkpoint, write_checkpoint
from chamfer.models.networks.transformer import folder_of, open_tower
from chamfer.models.training.data.groups import Group
from chamfer.models.training.loop.learner import Learner
from chamfer.models.training.loop.lora import adapt, adapter_updates, fast_forward
from chamfer.models.training.loop.recipe import Recipe


class Student(Learner):
    """A tower with an adapter and a head; subclasses set `kind` and `head` and implement `losses` and `score`."""

    kind: ClassVar[str]
    head: nn.Module

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tower = open_tower(
            recipe.backbone, recipe.features, dropout=recipe.adapter.dropout, attention=recipe.attention
        )
        self.tower.requires_grad_(False)
        if recipe.adapter.rank:
            adapt(self.tower.transformer, recipe.adapter)
        self.tokenizer = Tokenizer(folder_of(recipe.backbone) / "tokenizer.json")

    @abstractmethod
    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        """Scores f32 [n] of texts for a query, as the finished model computes them."""

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """See Learner."""
        return self.score(group.query, [documents[doc_id] for doc_id in group.doc_ids])

    def load_start(self, folder: Path) -> None:
        """Loads head and adapter of a finished model. InvalidInput if their shapes do not fit this recipe."""
        start, target = open_checkpoint(folder), self.description()
        layers = {name: m for name, m in self.tower.transformer.named_modules() if hasattr(m, "lora_A")}
        fits = all(
            name in layers and layers[name].lora_A["default"].weight.shape == update.down.shape
            for name, update in start.adapter.items()
        )
        same = ("kind", "backbone", "features", "adapter_scale")
        tensors = self.head.state_dict()  # tensors that the finished head lacks start as in a fresh head
        fits &= all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in start.head.items())
        if not fits or any(getattr(start.description, name) != getattr(target, name) for name in same):
            raise InvalidInput(
                f"init_from = {folder} is {start.description}, which cannot become {target} with {self.recipe.adapter}"
            )
        self.head.load_state_dict(start.head, strict=False)  # tables that are not trained are not stored
        with torch.no_grad():
            for name, update in start.adapter.items():
                layers[name].lora_A["default"].weight.copy_(update.down)
                layers[name].lora_B["default"].weight.copy_(update.up)

    def description(self) -> Description:
        """What model.json of the finished model says."""
        head = getattr(self.recipe, "head", None)
        return Description(
            kind=self.kind,
            backbone=self.recipe.backbone,
            features=self.recipe.features,
            attention=self.recipe.attention,
            query_tokens=self.recipe.served_query_tokens or self.recipe.query_tokens,
            document_tokens=self.recipe.served_document_tokens or self.recipe.document_tokens,
            head={} if head is None else asdict(head),
            adapter_scale=self.recipe.adapter.scale,
        )

    def save(self, folder: Path) -> None:
        """See Learner."""
        adapter = adapter_updates(self.tower.transformer, self.recipe.adapter.scale)
        write_checkpoint(folder, self.description(), dict(self.head.state_dict()), adapter)

    def fast_forward(self) -> AbstractContextManager[None]:
        """See Learner."""
        return fast_forward(self.tower, self.recipe.fit.precision)
