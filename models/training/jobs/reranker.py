"""Job `reranker`: a chat model that scores pairs and lists, of texts and of images (UniME-V2, arXiv 2510.13515)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.chat_model import Prompt
from chamfer.models.rerankers.generative import GenerativeReranker
from chamfer.models.rerankers.listwise import MAX_WINDOW
from chamfer.models.rerankers.prompts import LIST_ANSWER_START, UNIME_PAIR, list_messages, pair_messages
from chamfer.models.training.data.groups import Group
from chamfer.models.training.loop.chat_model_learner import ChatModelLearner
from chamfer.models.training.loop.draws import Draw
from chamfer.models.training.loop.micro_batches import in_order
from chamfer.models.training.loop.recipe import DataConfig, Recipe
from chamfer.models.training.losses.answers import answer_loss


@dataclass(frozen=True, kw_only=True)
class RerankerRecipe(Recipe):
    """backbone is the folder of a chat model; LoRA goes into its language part. Served as unime:FOLDER.

    pair_weight      weight of the question "is this candidate right?", for the positive and the
                     `hard_negatives` best-ranked negatives
    list_weight      weight of the question "which candidate is right?", for the positive among all sampled
                     negatives in random order
    hard_negatives   at most data.num_negatives
    softmax_over     answers: probability among the possible answers; vocabulary: among all tokens (as published)

    Lists have data.num_negatives + 1 candidates; choose the window of the service, 8.
    """

    pair_weight: float = 1.0
    list_weight: float = 1.0
    hard_negatives: int = 1
    softmax_over: Literal["answers", "vocabulary"] = "answers"

    RENAMED: ClassVar[dict[str, str]] = {**Recipe.RENAMED, "hard": "hard_negatives", "over": "softmax_over"}

    def __post_init__(self) -> None:
        negatives = self.data.num_negatives
        if not 1 <= negatives < MAX_WINDOW:
            raise InvalidInput(f"data.num_negatives is {negatives}, expected 1 to {MAX_WINDOW - 1} for a numbered list")
        if not 0 <= self.hard_negatives <= negatives:
            raise InvalidInput(
                f"hard_negatives is {self.hard_negatives}, expected 0 to data.num_negatives ({negatives})"
            )


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt with the token ids of the right answer and those of all possible answers."""

    prompt: Prompt
    right: list[int]
    possible: list[int]


class RerankerLearner(ChatModelLearner):
    """Uses the prompts of chamfer.models.rerankers.listwise."""

    kind = "reranker"
    recipe: RerankerRecipe

    def __init__(self, recipe: RerankerRecipe) -> None:
        super().__init__(recipe)
        self._yes, self._no = (self.language.answer_ids(s) for s in (UNIME_PAIR.positive, UNIME_PAIR.negative))
        self._numbers = [self.language.answer_ids([str(n)])[0] for n in range(1, MAX_WINDOW + 1)]

    def sample(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The positive, then negatives in the order of the pool, the hardest first."""
        positive, *negatives = super().sample(group, config, rng)
        return [positive, *sorted(negatives)]

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        pairs = [pair for draw in draws for pair in self._pairs(draw)]
        orders = self.orders(step, [len(draw.doc_ids) for draw in draws])
        lists = [self._list(draw, order) for draw, order in zip(draws, orders, strict=True)]
        batches = list(self.language.batches([p.prompt for p in (*pairs, *lists)], self.recipe.fit.micro_batch_tokens))
        logits = in_order([self.language.logits(inputs) for _, inputs in batches], [rows for rows, _ in batches])
        listed = logits[len(pairs) :].detach()
        right = [p.possible[int(row[p.possible].argmax())] in p.right for row, p in zip(listed, lists, strict=True)]
        self.notes = {"lists right": sum(right) / len(right)}
        return {
            "pair": self.recipe.pair_weight * self._loss(logits[: len(pairs)], pairs),
            "list": self.recipe.list_weight * self._loss(logits[len(pairs) :], lists),
        }

    def orders(self, step: int, lengths: Sequence[int]) -> list[list[int]]:
        """The random order in which each list of a step shows its candidates."""
        rng = np.random.default_rng((self.recipe.fit.seed, 3, step))
        return [rng.permutation(length).tolist() for length in lengths]

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Log-odds, as the served reranker computes them for short lists."""
        reranker = GenerativeReranker("student", self.language, UNIME_PAIR)
        candidates = self.documents(group.doc_ids, [documents[doc_id] for doc_id in group.doc_ids])
        return torch.from_numpy(reranker.score(self.query(group.query, group.query_image), candidates))

    def _loss(self, logits: Tensor, prompts: Sequence[PromptTokens]) -> Tensor:
        possible = [p.possible for p in prompts] if self.recipe.softmax_over == "answers" else None
        return answer_loss(logits, [p.right for p in prompts], possible).mean()

    def _pairs(self, draw: Draw) -> list[PromptTokens]:
        query = self.query(draw.query, draw.query_image)
        candidates = self.documents(draw.doc_ids, draw.texts)[: 1 + self.recipe.hard_negatives]
        return [
            PromptTokens(
                self.language.prompt(pair_messages(UNIME_PAIR, query, document), UNIME_PAIR.answer_start),
                self._no if index else self._yes,
                [*self._yes, *self._no],
            )
            for index, document in enumerate(candidates)
        ]

    def _list(self, draw: Draw, order: list[int]) -> PromptTokens:
        """The candidates in this order; candidate 0 of the draw is the right answer."""
        candidates = self.documents(draw.doc_ids, draw.texts)
        messages = list_messages(self.query(draw.query, draw.query_image), [candidates[index] for index in order])
        numbers = self._numbers[: len(order)]
        prompt = self.language.prompt(messages, LIST_ANSWER_START)
        return PromptTokens(prompt, [numbers[order.index(0)]], numbers)
