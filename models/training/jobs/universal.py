"""Job `universal`: one vector space for texts and images, with negatives of the wrong modality and soft labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.encoders.multimodal import document_prompt, query_prompt
from chamfer.models.networks.chat_model import Prompt
from chamfer.models.networks.checkpoint import Description
from chamfer.models.training.data.groups import Group
from chamfer.models.training.data.modality import MODALITY, RANK, sample_modalities
from chamfer.models.training.loop.chat_model_learner import ChatModelLearner
from chamfer.models.training.loop.draws import Draw, in_batch, own_candidates
from chamfer.models.training.loop.gradient_cache import cached
from chamfer.models.training.loop.micro_batches import in_order
from chamfer.models.training.loop.recipe import DataConfig, Recipe
from chamfer.models.training.losses.contrastive import infonce, unit
from chamfer.models.training.losses.distillation import half_jeffreys


@dataclass(frozen=True, kw_only=True)
class UniversalRecipe(Recipe):
    """InfoNCE over the documents of the batch, and a judge's scores of each query's own candidates.

    temperature, contrastive_weight   of InfoNCE
    judge_column        column of the groups with a judge's scores in [0, 1] (chamfer mine --judge); "": no soft labels
    judge_weight        of (KL(Q||P) + KL(P||Q)) / 2 between student and judge (UniME-V2)
    judge_temperature, student_temperature   of its two sides; 0.02 for both, as published, makes Q nearly one-hot
    modality_negatives  samples as MM-Embed does: negatives of the wrong modality that outrank the positive, and of the
                        right one below rank min_negative_rank (columns that chamfer mine --modality writes)
    instruction         precedes every query, in training and in service
    gradient_cache      whether gradients are cached (GradCache): fit.micro_batch_tokens bounds the memory; works in one
                        process
    """

    temperature: float = 0.05
    contrastive_weight: float = 1.0
    judge_column: str = ""
    judge_weight: float = 1.0
    judge_temperature: float = 0.2
    student_temperature: float = 0.05
    modality_negatives: bool = False
    min_negative_rank: int = 45
    instruction: str = ""
    gradient_cache: bool = True

    RENAMED: ClassVar[dict[str, str]] = {
        **Recipe.RENAMED,
        "judge": "judge_column",
        "modalities": "modality_negatives",
        "below": "min_negative_rank",
        "cached": "gradient_cache",
    }

    def __post_init__(self) -> None:
        values = (self.temperature, self.judge_temperature, self.student_temperature)
        if min(values) <= 0:
            raise InvalidInput(
                f"temperature, judge_temperature and student_temperature are {values}, expected numbers above 0"
            )


class UniversalLearner(ChatModelLearner):
    """Uses the prompts of chamfer.models.encoders.multimodal."""

    kind = "universal"
    recipe: UniversalRecipe

    @property
    def teachers(self) -> Sequence[str]:
        return (self.recipe.judge_column,) if self.recipe.judge_column else ()

    @property
    def single_process(self) -> bool:
        """See Learner; chamfer.models.training.loop.gradient_cache says why."""
        return self.recipe.gradient_cache

    def sample(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The positive and its negatives; with modality_negatives of both kinds."""
        if not self.recipe.modality_negatives:
            return super().sample(group, config, rng)
        if missing := {MODALITY, RANK} - group.teachers.keys():
            raise InvalidInput(
                f"group {group.query_id!r} has no column {sorted(missing)}; "
                "mine with --modality, or set modality_negatives = false"
            )
        return sample_modalities(group, config.num_negatives, self.recipe.min_negative_rank, rng)

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        del step
        queries = [self._query(draw.query, draw.query_image) for draw in draws]
        documents = [prompt for draw in draws for prompt in self._documents(draw.doc_ids, draw.texts)]
        vectors = unit(self.encode([*queries, *documents]))
        scores = vectors[: len(draws)] @ vectors[len(draws) :].T
        positives, allowed = in_batch(draws, scores.device)
        contrastive = infonce(scores / self.recipe.temperature, positives, allowed)
        parts = {"contrastive": self.recipe.contrastive_weight * contrastive}
        if self.recipe.judge_column:
            student = own_candidates(scores, positives, len(draws[0].doc_ids))
            judge = torch.tensor([draw.teachers[0] for draw in draws], device=scores.device)
            parts["judge"] = self.recipe.judge_weight * half_jeffreys(
                student / self.recipe.student_temperature, judge / self.recipe.judge_temperature
            )
        return parts

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Last states f32 [N, H], not normalised."""
        batches = list(self.language.batches(prompts, self.recipe.fit.micro_batch_tokens))
        rows = [batch_rows for batch_rows, _ in batches]
        if not (self.recipe.gradient_cache and self.training):
            return in_order([self.language.last_states(inputs) for _, inputs in batches], rows)

        def encode_batch(ids: Tensor, number: Tensor) -> Tensor:
            del ids  # passed so that the gradient cache knows the device
            return self.language.last_states(batches[int(number)][1])

        calls = [(inputs["input_ids"], torch.tensor(number)) for number, (_, inputs) in enumerate(batches)]
        return in_order([cached(encode_batch, calls)], rows)

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Cosines f32 [n]."""
        candidates = self._documents(group.doc_ids, [documents[doc_id] for doc_id in group.doc_ids])
        query, *vectors = unit(self.encode([self._query(group.query, group.query_image), *candidates]))
        cosines: Tensor = torch.stack(vectors) @ query
        return cosines

    def description(self) -> Description:
        return replace(super().description(), head={"instruction": self.recipe.instruction})

    def _query(self, text: str, image: object) -> Prompt:
        query = self.query(text, image)  # type: ignore[arg-type]  # an image
        return query_prompt(self.language, query, self.recipe.instruction, self.recipe.query_tokens)

    def _documents(self, doc_ids: Sequence[str], texts: Sequence[str]) -> list[Prompt]:
        limit = self.recipe.document_tokens
        return [document_prompt(self.language, document, limit) for document in self.documents(doc_ids, texts)]
