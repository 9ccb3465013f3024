"""Draws: groups with the candidates sampled for one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chamfer.models.training.data.groups import Group, Image, sample_candidates
from chamfer.models.training.loop.recipe import DataConfig
from chamfer.models.training.losses.contrastive import not_relevant

Sampler = Callable[[Group, DataConfig, np.random.Generator], list[int]]
"""Chooses candidates of a group, by their index in the group."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One query with K candidates: doc_ids, texts and labels are aligned, the first is relevant; teachers [T][K].

    relevant are the doc_ids of all relevant documents of the group; query_image is read by multimodal jobs alone.
    """

    query: str
    doc_ids: list[str]
    texts: list[str]
    labels: list[float]
    teachers: list[list[float]]
    relevant: set[str]
    query_image: Image | None = None


def sampled(group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
    """One positive, then `num_negatives` negatives of the configured range."""
    return sample_candidates(group, config.num_negatives, config.range_min, config.range_max, rng)


class Draws(torch.utils.data.Dataset[Draw]):
    """Draw i of epoch e depends on the seed, e and i alone, so a resumed run sees what an uninterrupted one saw."""

    def __init__(
        self,
        groups: Sequence[Group],
        documents: Mapping[str, str],
        config: DataConfig,
        teachers: Sequence[str],
        seed: int,
        sampler: Sampler = sampled,
    ) -> None:
        self._groups = groups
        self._documents = documents
        self._config = config
        self._teachers = teachers
        self._seed = seed
        self._sampler = sampler
        self._order = [np.random.default_rng((seed, epoch)).permutation(len(groups)) for epoch in range(config.epochs)]

    def __len__(self) -> int:
        return len(self._groups) * self._config.epochs

    def __getitem__(self, index: int) -> Draw:
        epoch, number = divmod(index, len(self._groups))
        group = self._groups[self._order[epoch][number]]
        rng = np.random.default_rng((self._seed, epoch, number))
        return draw(group, self._documents, self._sampler(group, self._config, rng), self._teachers)


def draw(group: Group, documents: Mapping[str, str], candidates: Sequence[int], teachers: Sequence[str]) -> Draw:
    """The draw of a group's candidates, given by index, with these teachers' scores."""
    taken = group.take(candidates)
    return Draw(
        query=group.query,
        doc_ids=list(taken.doc_ids),
        texts=[documents[doc_id] for doc_id in taken.doc_ids],
        labels=[float(label) for label in taken.labels],
        teachers=[[float(value) for value in taken.teachers[name]] for name in teachers],
        relevant={group.doc_ids[index] for index in group.positives},
        query_image=group.query_image,
    )


def in_batch(draws: Sequence[Draw], device: torch.device) -> tuple[Tensor, Tensor]:
    """(columns i64 [B] of the positives, allowed bool [B, N]) among the concatenated documents of all draws.

    Every draw has the same number of candidates. `allowed` is False for documents that the query counts as relevant.
    """
    n_candidates = len(draws[0].doc_ids)
    columns = [doc_id for draw in draws for doc_id in draw.doc_ids]
    allowed = not_relevant(columns, [draw.relevant for draw in draws])
    return torch.arange(len(draws), device=device) * n_candidates, allowed.to(device)


def own_candidates(scores: Tensor, positives: Tensor, n_candidates: int) -> Tensor:
    """The scores f32 [B, K] of each query's own candidates out of those of all documents of the batch, [B, B K]."""
    return scores.gather(1, positives[:, None] + torch.arange(n_candidates, device=scores.device))


def teacher_scores(draws: Sequence[Draw], device: torch.device) -> Tensor:
    """The scores f32 [T, B, K] of all teachers."""
    return torch.tensor([draw.teachers for draw in draws], device=device).transpose(0, 1)
