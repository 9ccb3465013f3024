"""Job `cross_encoder`: a score for a query and a document read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from models.cross import CrossModule, pair_ids
from models.heads import CrossHead, CrossHeadConfig
from models.trained import Description
from models.training.losses import ranking
from models.training.recipe import Recipe
from models.training.student import Draw, Student, micro_batches

_LOSSES = {"pointwise": ranking.pointwise, "pairwise": ranking.pairwise, "listwise": ranking.listwise}


@dataclass(frozen=True, kw_only=True)
class CrossEncoderRecipe(Recipe):
    """loss over the candidates of a query: each alone, in pairs, or as a list. document_tokens bounds the whole pair.

    weights names a column of the groups with one weight a candidate (CET and other corrections write such columns).
    """

    loss: Literal["pointwise", "pairwise", "listwise"] = "listwise"
    weights: str = ""
    head: CrossHeadConfig = field(default_factory=CrossHeadConfig)


class CrossEncoderStudent(Student):
    """Scores all pairs of a batch in micro-batches of like length."""

    recipe: CrossEncoderRecipe

    def __init__(self, recipe: CrossEncoderRecipe) -> None:
        super().__init__(recipe)
        self.head = CrossHead(sum(self.tower.widths), recipe.head)
        if self.head.project is not None and recipe.backbone == "mini" and recipe.features == ("last",):
            from models.projection import load_projection

            projection, _ = load_projection()
            if projection.shape[1] == recipe.head.dim:
                self.head.project.weight.data.copy_(torch.from_numpy(projection.T))
        self.pairs = CrossModule(self.tower, self.head, self.tokenizer.special_ids)

    @property
    def teachers(self) -> Sequence[str]:
        return (self.recipe.weights,) if self.recipe.weights else ()

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """One loss over [B, K] scores; every draw of a batch has the same number of candidates."""
        del step
        pairs = [(draw.query, text) for draw in draws for text in draw.texts]
        scores = self._score(pairs).view(len(draws), -1)
        labels = torch.tensor([draw.labels for draw in draws], device=scores.device)
        weights = (
            torch.tensor([draw.teachers[0] for draw in draws], device=scores.device) if self.recipe.weights else None
        )
        return {self.recipe.loss: _LOSSES[self.recipe.loss](scores, labels, weights)}

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        return self._score([(query, text) for text in texts])

    def description(self) -> Description:
        return Description(
            kind="cross",
            backbone=self.recipe.backbone,
            features=self.recipe.features,
            query_tokens=self.recipe.query_tokens,
            document_tokens=self.recipe.document_tokens,
            head=asdict(self.recipe.head),
            adapter_scale=self.recipe.adapter.scale,
        )

    def _score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        limit = self.recipe.document_tokens
        queries = self.tokenizer([query for query, _ in pairs], self.recipe.query_tokens).ids
        documents = self.tokenizer([text for _, text in pairs], limit).ids
        ids = [pair_ids(q, d, limit) for q, d in zip(queries, documents, strict=True)]
        batches = micro_batches(ids, limit, self.recipe.fit.micro_tokens, self.tokenizer.pad_id)
        device = next(self.parameters()).device
        scores = torch.cat([self.pairs(part.to(device), mask.to(device)).float() for _, part, mask in batches])
        order = torch.tensor([row for rows, _, _ in batches for row in rows])
        return scores[torch.argsort(order).to(device)]
