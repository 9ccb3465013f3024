"""Job `universal`: one space for texts and images, from negatives of the wrong modality and a judge's soft labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.encoders.multimodal import document_prompt, query_prompt
from chamfer.models.networks.checkpoint import Description
from chamfer.models.rerankers.chat_model import Prompt
from chamfer.models.training.data.groups import Group
from chamfer.models.training.data.modality import MODALITY, RANK, modality_places
from chamfer.models.training.loop.chat_model_learner import LanguageLearner
from chamfer.models.training.loop.gradient_cache import cached
from chamfer.models.training.loop.recipe import DataConfig, Recipe
from chamfer.models.training.loop.student import Draw, in_batch, in_order
from chamfer.models.training.losses.contrastive import infonce, unit
from chamfer.models.training.losses.distillation import half_jeffreys


@dataclass(frozen=True, kw_only=True)
class UniversalRecipe(Recipe):
    """InfoNCE over the documents of the batch, and the judge's opinion of each query's own candidates.

    temperature          of InfoNCE, weighted contrastive_weight
    judge                a column of the groups with a judge's scores in [0, 1] (chamfer mine --judge), aligned by
                         (KL(Q||P) + KL(P||Q)) / 2 (UniME-V2), weighted judge_weight; none: no soft labels
    judge_temperature, student_temperature   of its sides: 0.02 for both, as published, makes Q nearly one-hot
    modalities           draws as MM-Embed does: negatives of the wrong modality that outrank the positive, and of the
                         right one below rank `below` (columns `modality` and `rank` of chamfer mine --modality)
    instruction          stands before every query, in training and in service
    cached               gradients are cached (GradCache): fit.micro_tokens bounds the memory; for one process
    """

    temperature: float = 0.05
    contrastive_weight: float = 1.0
    judge: str = ""
    judge_weight: float = 1.0
    judge_temperature: float = 0.2
    student_temperature: float = 0.05
    modalities: bool = False
    below: int = 45
    instruction: str = ""
    cached: bool = True

    def __post_init__(self) -> None:
        values = (self.temperature, self.judge_temperature, self.student_temperature)
        if min(values) <= 0:
            raise InvalidInput(f"temperatures are {values}, expected above 0")


class UniversalLearner(LanguageLearner):
    """Encodes as chamfer.models.encoders.multimodal encodes, with the same words."""

    kind = "universal"
    recipe: UniversalRecipe

    @property
    def teachers(self) -> Sequence[str]:
        return (self.recipe.judge,) if self.recipe.judge else ()

    def places(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The positive and its negatives; with `modalities` of both kinds."""
        if not self.recipe.modalities:
            return super().places(group, config, rng)
        if missing := {MODALITY, RANK} - group.teachers.keys():
            raise InvalidInput(
                f"group {group.query_id!r} has no column {sorted(missing)}; "
                "mine with --modality, or set modalities = false"
            )
        return modality_places(group, config.negatives, self.recipe.below, rng)

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        del step
        asked = [self._query(draw.query, draw.query_image) for draw in draws]
        shown = [prompt for draw in draws for prompt in self._documents(draw.doc_ids, draw.texts)]
        vectors = unit(self.encode([*asked, *shown]))
        scores = vectors[: len(draws)] @ vectors[len(draws) :].T
        places, allowed = in_batch(draws, scores.device)
        parts = {
            "contrastive": self.recipe.contrastive_weight * infonce(scores / self.recipe.temperature, places, allowed)
        }
        if self.recipe.judge:
            own = scores.gather(1, places[:, None] + torch.arange(len(draws[0].doc_ids), device=scores.device))
            judged = torch.tensor([draw.teachers[0] for draw in draws], device=scores.device)
            parts["judge"] = self.recipe.judge_weight * half_jeffreys(
                own / self.recipe.student_temperature, judged / self.recipe.judge_temperature
            )
        return parts

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Last states f32 [N, H], not normalised."""
        batches = list(self.language.batches(prompts, self.recipe.fit.micro_tokens))
        rows = [own for own, _ in batches]
        if not (self.recipe.cached and self.training):
            return in_order([self.language.last_states(inputs) for _, inputs in batches], rows)

        def again(ids: Tensor, place: Tensor) -> Tensor:
            del ids  # it says on which device
            return self.language.last_states(batches[int(place)][1])

        calls = [(inputs["input_ids"], torch.tensor(place)) for place, (_, inputs) in enumerate(batches)]
        return in_order([cached(again, calls)], rows)

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Cosines f32 [n]."""
        shown = self._documents(group.doc_ids, [documents[doc_id] for doc_id in group.doc_ids])
        asked, *own = unit(self.encode([self._query(group.query, group.query_image), *shown]))
        cosines: Tensor = torch.stack(own) @ asked
        return cosines

    def description(self) -> Description:
        return replace(super().description(), head={"instruction": self.recipe.instruction})

    def _query(self, text: str, image: object) -> Prompt:
        query = self.query(text, image)  # type: ignore[arg-type]  # an image
        return query_prompt(self.language, query, self.recipe.instruction, self.recipe.query_tokens)

    def _documents(self, doc_ids: Sequence[str], texts: Sequence[str]) -> list[Prompt]:
        limit = self.recipe.document_tokens
        return [document_prompt(self.language, document, limit) for document in self.documents(doc_ids, texts)]
