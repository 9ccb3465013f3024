"""Groups as impressions: what was shown for a query, at which rank, and what was clicked.

`chamfer selections` writes such groups from logs.
"""

from __future__ import annotations

import math
from dataclasses import replace

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Group

RANK, SHOWN, PROPENSITY = "rank", "shown", "propensity"


def as_impression(group: Group, eta: float) -> Group:
    """The documents that were shown, by rank, with columns `rank` and `propensity`; labels are clicks.

    A propensity that was not logged is rank ** -eta (position-based examination). InvalidInput without ranks, or for a
    propensity outside (0, 1].
    """
    if RANK not in group.teachers:
        raise InvalidInput(
            f"group {group.query_id!r} has no column {RANK!r}; chamfer selections writes logs as groups that have it"
        )
    ranks = group.teachers[RANK]
    shown = group.teachers.get(SHOWN, [1.0] * len(ranks))
    candidates = sorted((n for n in range(len(ranks)) if shown[n] > 0), key=lambda n: ranks[n])
    taken = group.take(candidates)
    logged = taken.teachers.get(PROPENSITY, [math.nan] * len(candidates))
    propensities = [
        rank**-eta if math.isnan(value) else value for rank, value in zip(taken.teachers[RANK], logged, strict=True)
    ]
    if not all(0 < value <= 1 for value in propensities):
        raise InvalidInput(f"group {group.query_id!r} has propensities {propensities}; expected numbers in (0, 1]")
    return replace(taken, teachers={RANK: taken.teachers[RANK], PROPENSITY: propensities})
