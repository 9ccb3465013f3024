"""Negatives that teach a model which modality a query asks for (MM-Embed, arXiv 2411.02571)."""

from __future__ import annotations

import math

import numpy as np

from chamfer.models.training.data.groups import Group

MODALITY, RANK = (
    "modality",
    "rank",
)  # columns of mined groups: 1 if the modality differs from the positives'; rank from 1


def modality_negatives(group: Group, positive: int, min_negative_rank: int) -> tuple[list[int], list[int]]:
    """Indices of the two kinds of negatives (C1, C2) for a positive, given by index.

    C1: negatives of another modality ranked above the positive; all of them if it was not retrieved (rank NaN).
    C2: negatives of the wanted modality at ranks beyond min_negative_rank; higher ones are often unjudged positives.
    """
    modality, ranks = group.teachers[MODALITY], group.teachers[RANK]
    bound = math.inf if math.isnan(ranks[positive]) else ranks[positive]
    wrong = [index for index in group.negatives if modality[index] > 0 and ranks[index] < bound]
    right = [index for index in group.negatives if modality[index] == 0 and ranks[index] > min_negative_rank]
    return wrong, right


def sample_modalities(group: Group, num_negatives: int, min_negative_rank: int, rng: np.random.Generator) -> list[int]:
    """Indices of one positive and then `num_negatives` others, each from C1 or C2 with equal probability.

    When one of them is exhausted the other takes over, then any other negative, then repetitions.
    """
    positive = int(rng.choice(group.positives))
    kinds = [rng.permutation(kind).tolist() for kind in modality_negatives(group, positive, min_negative_rank)]
    rest = [index for index in rng.permutation(group.negatives).tolist() if not any(index in kind for kind in kinds)]
    sampled: list[int] = []
    while len(sampled) < num_negatives:
        first = int(rng.random() < 0.5)
        source = next((pool for pool in (kinds[first], kinds[1 - first], rest) if pool), None)
        if source is None:
            sampled += rng.choice(group.negatives, size=num_negatives - len(sampled)).tolist()
        else:
            sampled.append(int(source.pop()))
    return [positive, *sampled]
