"""Groups as impressions: what was shown for a query, where, and what was clicked (chamfer selections writes them)."""

from __future__ import annotations

import math
from dataclasses import replace

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Group

RANK, SHOWN, PROPENSITY = "rank", "shown", "propensity"


def as_impression(group: Group, eta: float) -> Group:
    """What was shown, in the order of ranks, with columns `rank` and `propensity`; labels are clicks.

    Where no propensity was logged it is rank ** -eta (position-based examination). InvalidInput without ranks or for a
    propensity that is no probability.
    """
    if RANK not in group.teachers:
        raise InvalidInput(
            f"group {group.query_id!r} has no column {RANK!r}; chamfer selections writes logs as groups that have it"
        )
    ranks = group.teachers[RANK]
    shown = group.teachers.get(SHOWN, [1.0] * len(ranks))
    places = sorted((place for place in range(len(ranks)) if shown[place] > 0), key=lambda place: ranks[place])
    taken = group.take(places)
    given = taken.teachers.get(PROPENSITY, [math.nan] * len(places))
    propensities = [
        rank**-eta if math.isnan(value) else value for rank, value in zip(taken.teachers[RANK], given, strict=True)
    ]
    if not all(0 < value <= 1 for value in propensities):
        raise InvalidInput(f"group {group.query_id!r} has propensities {propensities}; expected numbers in (0, 1]")
    return replace(taken, teachers={RANK: taken.teachers[RANK], PROPENSITY: propensities})
