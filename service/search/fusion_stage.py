"""The fusion of a search's runs, as its plan asks: after the first round of retrieval, and again after feedback."""

from __future__ import annotations

from collections.abc import Mapping

from chamfer.core.types import Candidates
from chamfer.service.search.fusion import Fused, distribution_based, interpolate, reciprocal_rank
from chamfer.service.search.in_flight import InFlightSearch
from chamfer.service.search.plans import DistributionBased, Plan, ReciprocalRank


def fuse_runs(group: list[InFlightSearch]) -> None:
    """Fuses the first round of each search."""
    for search in group:
        # In the plan's order: runs arrive in the order of the whole batch, and the last bit of a sum depends on order.
        runs = {name: search.runs[name] for name in search.plan.plan.active if name in search.runs}
        search.fused = _fused(search.plan.plan, runs)
        search.ranked = search.fused.candidates


def fuse_feedback_runs(group: list[InFlightSearch]) -> None:
    """Fuses the round after feedback of each search; a single run is the ranking itself."""
    for search in group:
        runs = search.runs_after_feedback
        if len(runs) > 1:
            search.feedback_fused = _fused(search.plan.plan, runs)
            search.ranked = search.feedback_fused.candidates
        else:
            [search.ranked] = runs.values()


def _fused(plan: Plan, runs: Mapping[str, Candidates]) -> Fused:
    weights = {name: plan.channels[name].weight for name in runs}
    if isinstance(plan.fusion, ReciprocalRank):
        return reciprocal_rank(runs, weights, plan.fusion.k)
    if isinstance(plan.fusion, DistributionBased):
        return distribution_based(runs, weights)
    return interpolate(runs, weights, plan.fusion.normalisation)
