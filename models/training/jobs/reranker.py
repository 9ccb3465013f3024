"""Job `reranker`: a chat model that judges pairs and lists, of texts and of images (UniME-V2, arXiv 2510.13515)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.rerankers.chat_model import GenerativeReranker, Prompt
from chamfer.models.rerankers.listwise import MAX_WINDOW
from chamfer.models.rerankers.prompts import LIST_ANSWER_START, UNIME_PAIR, list_messages, pair_messages
from chamfer.models.training.data.groups import Group, sample_places
from chamfer.models.training.loop.chat_model_learner import LanguageLearner
from chamfer.models.training.loop.recipe import DataConfig, Recipe
from chamfer.models.training.loop.student import Draw, in_order
from chamfer.models.training.losses.answers import answer


@dataclass(frozen=True, kw_only=True)
class RerankerRecipe(Recipe):
    """pair_weight of "is this one right?", asked of the positive and of the `hard` best-ranked negatives drawn;
    list_weight of "which one is right?", asked of the positive among all negatives drawn, its place drawn anew.

    over: answers compares a token with the other possible answers, vocabulary with all tokens (as published).
    backbone is the folder of a chat model; LoRA goes into its language part. The finished folder is served as
    unime:FOLDER. Lists are as long as data.negatives and the positive: take the window of the service, 8.
    """

    pair_weight: float = 1.0
    list_weight: float = 1.0
    hard: int = 1
    over: Literal["answers", "vocabulary"] = "answers"

    def __post_init__(self) -> None:
        if not 1 <= self.data.negatives < MAX_WINDOW:
            raise InvalidInput(
                f"data.negatives is {self.data.negatives}; a list has the positive and 1 to {MAX_WINDOW - 1} negatives"
            )
        if not 0 <= self.hard <= self.data.negatives:
            raise InvalidInput(f"hard is {self.hard}, expected at most data.negatives ({self.data.negatives})")


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, the tokens that answer it rightly, and all that may answer it."""

    prompt: Prompt
    right: list[int]
    among: list[int]


class RerankerLearner(LanguageLearner):
    """Asks as chamfer.models.rerankers.listwise asks, with the same words."""

    kind = "reranker"
    recipe: RerankerRecipe

    def __init__(self, recipe: RerankerRecipe) -> None:
        super().__init__(recipe)
        self._yes, self._no = (self.language.answer_ids(s) for s in (UNIME_PAIR.positive, UNIME_PAIR.negative))
        self._numbers = [self.language.answer_ids([str(n)])[0] for n in range(1, MAX_WINDOW + 1)]

    def places(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The positive, then negatives in the order of the pool: the hardest first."""
        positive, *others = sample_places(group, config.negatives, config.first, config.last, rng)
        return [positive, *sorted(others)]

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        pairs = [asked for draw in draws for asked in self._pairs(draw)]
        orders = self.orders(step, [len(draw.doc_ids) for draw in draws])
        lists = [self._list(draw, order) for draw, order in zip(draws, orders, strict=True)]
        batches = list(self.language.batches([a.prompt for a in (*pairs, *lists)], self.recipe.fit.micro_tokens))
        logits = in_order([self.language.logits(inputs) for _, inputs in batches], [rows for rows, _ in batches])
        listed = logits[len(pairs) :].detach()
        right = [a.among[int(own[a.among].argmax())] in a.right for own, a in zip(listed, lists, strict=True)]
        self.notes = {"lists right": sum(right) / len(right)}
        return {
            "pair": self.recipe.pair_weight * self._loss(logits[: len(pairs)], pairs),
            "list": self.recipe.list_weight * self._loss(logits[len(pairs) :], lists),
        }

    def orders(self, step: int, lengths: Sequence[int]) -> list[list[int]]:
        """In which order each list of a step shows its candidates: all equally likely, whatever they are."""
        rng = np.random.default_rng((self.recipe.fit.seed, 3, step))
        return [rng.permutation(length).tolist() for length in lengths]

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Log-odds, as the served reranker gives them to short lists."""
        judge = GenerativeReranker("student", self.language, UNIME_PAIR)
        shown = self.documents(group.doc_ids, [documents[doc_id] for doc_id in group.doc_ids])
        return torch.from_numpy(judge.score(self.query(group.query, group.query_image), shown))

    def _loss(self, logits: Tensor, asked: Sequence[Asked]) -> Tensor:
        among = [a.among for a in asked] if self.recipe.over == "answers" else None
        return answer(logits, [a.right for a in asked], among).mean()

    def _pairs(self, draw: Draw) -> list[Asked]:
        query = self.query(draw.query, draw.query_image)
        judged = self.documents(draw.doc_ids, draw.texts)[: 1 + self.recipe.hard]
        return [
            Asked(
                self.language.prompt(pair_messages(UNIME_PAIR, query, document), UNIME_PAIR.answer_start),
                self._no if place else self._yes,
                [*self._yes, *self._no],
            )
            for place, document in enumerate(judged)
        ]

    def _list(self, draw: Draw, order: list[int]) -> Asked:
        """The candidates in this order; place 0 of the draw is the right one, and the only one known to be right."""
        shown = self.documents(draw.doc_ids, draw.texts)
        messages = list_messages(self.query(draw.query, draw.query_image), [shown[place] for place in order])
        numbers = self._numbers[: len(order)]
        prompt = self.language.prompt(messages, LIST_ANSWER_START)
        return Asked(prompt, [numbers[order.index(0)]], numbers)
