"""Negatives that teach which modality is wanted (MM-Embed, arXiv 2411.02571)."""

from __future__ import annotations

import math

import numpy as np

from chamfer.models.training.data.groups import Group

MODALITY, RANK = "modality", "rank"  # columns of mined groups: 1 where the modality is not a positive's; rank from 1


def wrong_and_right(group: Group, positive: int, below: int) -> tuple[list[int], list[int]]:
    """Places of (C1, C2) for the positive at a place.

    C1: negatives of another modality that rank above the positive, all of them if it was not retrieved (NaN). C2:
    negatives of the wanted modality at ranks beyond `below`; what stands higher is often right and only not judged.
    """
    modality, ranks = group.teachers[MODALITY], group.teachers[RANK]
    bound = math.inf if math.isnan(ranks[positive]) else ranks[positive]
    wrong = [place for place in group.negatives if modality[place] > 0 and ranks[place] < bound]
    right = [place for place in group.negatives if modality[place] == 0 and ranks[place] > below]
    return wrong, right


def modality_places(group: Group, negatives: int, below: int, rng: np.random.Generator) -> list[int]:
    """Places of one positive and then `negatives` others, each from C1 or C2 with equal chance.

    Where one of them has too few, the other gives more; then any negative, then repetitions.
    """
    positive = int(rng.choice(group.positives))
    kinds = [rng.permutation(places).tolist() for places in wrong_and_right(group, positive, below)]
    rest = [place for place in rng.permutation(group.negatives).tolist() if not any(place in own for own in kinds)]
    drawn: list[int] = []
    while len(drawn) < negatives:
        first = int(rng.random() < 0.5)
        source = next((own for own in (kinds[first], kinds[1 - first], rest) if own), None)
        if source is None:
            drawn += rng.choice(group.negatives, size=negatives - len(drawn)).tolist()
        else:
            drawn.append(int(source.pop()))
    return [positive, *drawn]
