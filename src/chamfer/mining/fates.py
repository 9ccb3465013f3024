"""The fate of each candidate of a pool: positive, kept as a negative, or the filter that dropped it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.types import Bool
from chamfer.mining import negative_filters
from chamfer.mining.config import MiningConfig
from chamfer.mining.pool import Pool

KEPT, POSITIVE, WRONG_MODALITY = "kept", "positive", "wrong_modality"
INCONSISTENT, NOT_DRAWN = "inconsistent", "not_drawn"


def assign_fates(pool: Pool, config: MiningConfig) -> None:
    """Writes `pool.fates`: applies the filters of the configuration, then draws negatives from what they leave."""
    ranks = pool.features["rank"]
    if config.consistency and not negative_filters.consistent(ranks[pool.positive], config.consistency):
        dropped = [(INCONSISTENT, np.ones(len(pool), dtype=bool))]
        pool.fates = fates(len(pool), pool.positive, dropped, config.stride, config.keep)
        return
    pool.fates = fates(len(pool), pool.positive, dropped_by(pool, config), config.stride, config.keep)
    if config.modality:
        other = (pool.features["modality"] > 0) & ~pool.positive
        eligible = np.flatnonzero(other & negative_filters.outranking(ranks, ranks[pool.positive]))
        for index in eligible[negative_filters.cyclic(len(eligible), config.stride, config.wrong)]:
            pool.fates[index] = WRONG_MODALITY


def fates(n: int, positive: Bool, dropped: Sequence[tuple[str, Bool]], stride: int, keep: int) -> list[str]:
    """The fate of each of n candidates: "positive", "kept", the first filter that dropped it, or "not_drawn".

    `dropped` holds pairs of a filter's name and the candidates that it drops, bool [n]. Of the remaining candidates,
    `keep` are drawn with a cyclic stride.
    """
    fate_of = np.full(n, KEPT, dtype=object)
    for name, drops in reversed(dropped):
        fate_of[drops] = name
    fate_of[positive] = POSITIVE
    survivors = np.flatnonzero(fate_of == KEPT)
    drawn = survivors[negative_filters.cyclic(len(survivors), stride, keep)]
    fate_of[np.setdiff1d(survivors, drawn)] = NOT_DRAWN
    return [str(fate) for fate in fate_of]


def dropped_by(pool: Pool, config: MiningConfig) -> list[tuple[str, Bool]]:
    """(name, candidates that it drops) of every active filter, in the order in which a fate is attributed."""
    features = pool.features
    dropped: list[tuple[str, Bool]] = []
    if config.modality:
        dropped.append(("other_modality", features["modality"] > 0))
    outside = negative_filters.outside_ranks(features["rank"], config.first_rank, config.worst_rank)
    dropped.append(("rank", outside))
    if config.duplicate is not None:
        dropped.append(("duplicate", negative_filters.near_duplicates(features["duplicate"], config.duplicate)))
    if config.twin is not None and "twin" in features:
        dropped.append(("twin", negative_filters.near_duplicates(features["twin"], config.twin)))
    if "cluster" in features:
        dropped.append(("cluster", negative_filters.outside_clusters(features["cluster"], config.nearest)))
    if config.margin is not None:
        positive_score = pool.best_positive(config.by)
        dropped.append(("margin", negative_filters.within_margin(features[config.by], positive_score, config.margin)))
    if config.share is not None:
        positive_score = pool.best_positive(config.by)
        dropped.append(("share", negative_filters.within_share(features[config.by], positive_score, config.share)))
    if "judge" in features:
        positive_score = pool.best_positive("judge")
        dropped.append(("judge", negative_filters.within_margin(features["judge"], positive_score, config.beta)))
        if config.judge_most is not None:
            dropped.append(("judge_most", negative_filters.above(features["judge"], config.judge_most)))
    return dropped
