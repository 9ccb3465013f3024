"""Job `cross_encoder`: a reranker that reads query and document together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.features import LAST, MINI
from chamfer.models.networks.heads import CrossHead, CrossHeadConfig
from chamfer.models.networks.projection import load_projection
from chamfer.models.networks.transformer import open_tower
from chamfer.models.rerankers.trained import CrossModule, pair_ids
from chamfer.models.training.jobs.selection_bias import Calibration, CetConfig, PoolSelection, Scored, corrected
from chamfer.models.training.loop.draws import Draw
from chamfer.models.training.loop.lora import adapt
from chamfer.models.training.loop.micro_batches import in_order, micro_batches
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Student
from chamfer.models.training.losses import ranking

_LOSSES = {"pointwise": ranking.pointwise, "pairwise": ranking.pairwise, "listwise": ranking.listwise}


@dataclass(frozen=True, kw_only=True)
class CrossEncoderRecipe(Recipe):
    """document_tokens is the limit of a whole pair.

    loss            over the candidates of a query: each alone, in pairs, or as a list
    weight_column   column of the groups with one weight per candidate (as CET and other corrections compute)
    """

    loss: Literal["pointwise", "pairwise", "listwise"] = "listwise"
    weight_column: str = ""
    head: CrossHeadConfig = field(default_factory=CrossHeadConfig)
    cet: CetConfig = field(default_factory=CetConfig)

    RENAMED: ClassVar[dict[str, str]] = {**Recipe.RENAMED, "weights": "weight_column"}

    def __post_init__(self) -> None:
        if self.cet.selection_model != "off" and (self.loss != "pairwise" or self.weight_column):
            raise InvalidInput(
                f"cet computes the weights of pairs; it needs loss = 'pairwise' and no weight_column, "
                f"found loss = {self.loss!r}, weight_column = {self.weight_column!r}"
            )


class CrossEncoderStudent(Student):
    """Scores all pairs of a batch in micro-batches of similar length."""

    kind = "cross"
    recipe: CrossEncoderRecipe

    def __init__(self, recipe: CrossEncoderRecipe) -> None:
        super().__init__(recipe)
        self.head = CrossHead(sum(self.tower.widths), recipe.head)
        if self.head.project is not None and recipe.backbone == MINI and recipe.features == (LAST,):
            projection, _ = load_projection()
            if projection.shape[1] == recipe.head.dim:
                self.head.project.weight.data.copy_(torch.from_numpy(projection.T))
        self.pairs = CrossModule(self.tower, self.head, self.tokenizer.special_ids)
        self.selection: nn.Module | None = None
        self._steps = 0
        if recipe.cet.selection_model != "off":
            self.selection = self._selection()
            self.calibration = Calibration().requires_grad_(recipe.cet.weighting == "exact")

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.cet.columns or ((self.recipe.weight_column,) if self.recipe.weight_column else ())

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        del documents
        self._steps = steps

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """One loss over [B, K] scores; every draw of a batch has the same number of candidates."""
        if self.selection is not None:
            return self._corrected(draws, step)
        pairs = [(draw.query, text) for draw in draws for text in draw.texts]
        scores = self._score(pairs).view(len(draws), -1)
        labels = torch.tensor([draw.labels for draw in draws], device=scores.device)
        weights = None
        if self.recipe.weight_column:
            weights = torch.tensor([draw.teachers[0] for draw in draws], device=scores.device)
        return {self.recipe.loss: _LOSSES[self.recipe.loss](scores, labels, weights)}

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        return self._score([(query, text) for text in texts])

    def _selection(self) -> nn.Module:
        """The model of the selection of candidates: a twin of the ranker, or a function of the pool's features."""
        config = self.recipe.cet
        if config.selection_model != "released":
            return PoolSelection(list(config.features.values()))
        tower = open_tower(
            self.recipe.backbone,
            self.recipe.features,
            dropout=self.recipe.adapter.dropout,
            attention=self.recipe.attention,
        )
        tower.requires_grad_(False)
        if self.recipe.adapter.rank:
            adapt(tower.transformer, self.recipe.adapter)
        return CrossModule(tower, CrossHead(sum(tower.widths), self.recipe.head), self.tokenizer.special_ids)

    def _corrected(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        config = self.recipe.cet
        device = next(self.parameters()).device
        labels = torch.tensor([draw.labels for draw in draws], device=device)
        columns = torch.tensor([draw.teachers for draw in draws], device=device)
        columns = columns.view(len(draws), len(self.teachers), -1 if self.teachers else labels.shape[1]).transpose(1, 2)
        pairs = [(draw.query, text) for draw in draws for text in draw.texts]

        def both() -> tuple[Tensor, Tensor]:
            ranker = self._score(pairs).view(labels.shape)
            if isinstance(self.selection, CrossModule):
                return ranker, self._score(pairs, self.selection).view(labels.shape)
            assert self.selection is not None
            return ranker, self.selection(columns[..., : len(config.features)])

        ranker, selector = both()
        steady = (ranker.detach(), selector.detach())
        if self.recipe.adapter.dropout and self.training:
            self.eval()
            with torch.no_grad():
                steady = both()
            self.train()
        selected = columns[..., -1] if config.selection_model == "logged" else None
        warm = step < config.warmup_ratio * self._steps
        scored = Scored(ranker, selector, *steady)
        parts, self.notes = corrected(scored, labels, selected, self.calibration, config, warm)
        return parts

    def _score(self, pairs: Sequence[tuple[str, str]], module: CrossModule | None = None) -> Tensor:
        limit = self.recipe.document_tokens
        queries = self.tokenizer([query for query, _ in pairs], self.recipe.query_tokens).ids
        documents = self.tokenizer([text for _, text in pairs], limit).ids
        ids = [pair_ids(q, d, limit) for q, d in zip(queries, documents, strict=True)]
        batches = micro_batches(ids, limit, self.recipe.fit.micro_batch_tokens, self.tokenizer.pad_id)
        device = next(self.parameters()).device
        scores = [(module or self.pairs)(part.to(device), mask.to(device)).float() for _, part, mask in batches]
        return in_order(scores, [rows for rows, _, _ in batches])
