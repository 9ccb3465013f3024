"""Job `sparse`: inference-free learned sparse retrieval (arXiv 2411.04403, 2504.14839)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.heads import SparseHead, SparseHeadConfig
from models.training.losses import sparsity
from models.training.losses.contrastive import infonce
from models.training.losses.distillation import ensemble, kl
from models.training.recipe import Recipe
from models.training.states import StateReader
from models.training.student import Draw, Student, in_batch
from models.training.terms import idf


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(Recipe):
    """KL from an ensemble of teachers of different kinds, a contrastive part, and FLOPS with a quadratic ramp.

    The score is sum over the query's distinct terms of idf(t) * document weight; there is no query encoder.
    vocabulary_sample n above 0 computes logits of the batch's query terms and of n drawn terms alone: the scores are
    exact, FLOPS is estimated without bias (its sum over the drawn terms times V / n). 0 computes all.
    flops_form: pooled over all documents, grouped by slot, or masked below flops_threshold non-zeros (needs all terms).
    """

    teachers: tuple[str, ...] = ("bm25", "dense")
    teacher_scale: float = 30.0
    teacher_weight: float = 1.0
    contrastive_weight: float = 0.1
    flops_weight: float = 0.02
    flops_ramp: float = 0.3
    flops_form: Literal["pooled", "grouped", "masked"] = "pooled"
    flops_threshold: int = 150
    vocabulary_sample: int = 2048
    head: SparseHeadConfig = field(default_factory=SparseHeadConfig)


class SparseStudent(Student):
    """A sparse head; the backbone learns only with an adapter."""

    kind = "sparse"
    recipe: SparseRecipe
    head: SparseHead

    def __init__(self, recipe: SparseRecipe) -> None:
        super().__init__(recipe)
        self.head = SparseHead(sum(self.tower.widths), self.tower.vocabulary, recipe.head)
        self.read = StateReader(self.tower, self.tokenizer, recipe.fit.micro_tokens)
        self.steps = 1

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.teachers

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        self.steps = steps
        self.head.idf.copy_(torch.from_numpy(idf(self.tokenizer, documents, len(self.head.idf))))

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        recipe = self.recipe
        asked = [self.query_terms(draw.query) for draw in draws]
        drawn = self._drawn(step)
        terms = torch.tensor(sorted({t for own in asked for t in own} | set(drawn)), device=self.head.idf.device)
        states = self.read([text for draw in draws for text in draw.texts], recipe.document_tokens)
        weights = self.head(states.hidden, states.ids, states.mask, terms)
        presence = torch.stack([torch.isin(terms, torch.tensor(own, device=terms.device)) for own in asked])
        scores = (presence * self.head.idf[terms]) @ weights.T
        each = len(draws[0].doc_ids)
        places, allowed = in_batch(draws, scores.device)
        own_scores = scores.gather(1, places[:, None] + torch.arange(each, device=scores.device))
        taught = torch.tensor([draw.teachers for draw in draws], device=scores.device).transpose(0, 1)
        sampled = weights[:, torch.isin(terms, torch.tensor(drawn, device=terms.device))]
        share = len(self.head.idf) / max(sampled.shape[1], 1)
        ramp = sparsity.ramp(recipe.flops_weight, step, int(recipe.flops_ramp * self.steps))
        return {
            "teachers": recipe.teacher_weight * kl(own_scores, ensemble(taught, recipe.teacher_scale)),
            "contrastive": recipe.contrastive_weight * infonce(scores, places, allowed),
            "flops": ramp * share * self._flops(sampled, each),
        }

    def query_terms(self, query: str) -> list[int]:
        """The distinct terms of a query, ascending, without those that frame a text."""
        ids = self.tokenizer([query], self.recipe.query_tokens).ids[0]
        return sorted(set(ids) - set(self.tokenizer.special_ids))

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        terms = torch.tensor(self.query_terms(query), dtype=torch.long)
        states = self.read(texts, self.recipe.document_tokens)
        weights: Tensor = self.head(states.hidden, states.ids, states.mask, terms)
        return weights @ self.head.idf[terms]

    def _drawn(self, step: int) -> list[int]:
        n = self.recipe.vocabulary_sample
        size = len(self.head.idf)
        if not 0 < n < size:
            return list(range(size))
        rng = np.random.default_rng((self.recipe.fit.seed, 1, step))
        return [int(term) for term in rng.choice(size, size=n, replace=False)]

    def _flops(self, weights: Tensor, slots: int) -> Tensor:
        if self.recipe.flops_form == "masked":
            return sparsity.masked_flops(weights, self.recipe.flops_threshold)
        if self.recipe.flops_form == "grouped":
            return sparsity.grouped_flops(weights.view(-1, slots, weights.shape[1]).transpose(0, 1))
        return sparsity.flops(weights)
