"""Presets, named plans, and the check of a plan against what a collection can run.

Presets adapt to what a collection has. A plan that is spelled out is run as written, or refused if it names something
that the collection lacks.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from chamfer.core.errors import InvalidInput
from chamfer.core.types import VectorKind
from chamfer.service.search.plans import (
    DEFAULT_CHANNEL_DEPTH,
    DEFAULT_RERANK_DEPTH,
    DEFAULT_RESCORE_DEPTH,
    ChannelPlan,
    Plan,
    Rerank,
    Rescore,
)

PRESETS = ("fast", "balanced", "best")
DEFAULT_PRESET = "balanced"

# First-stage channels in order of preference; a channel of another name follows with OTHER_WEIGHT. Weights multiply
# min-max-normalised scores. Chosen on fairytaleqa dev and scifact train (docs/experiments.md, 2026-11-24).
FIRST_STAGE_WEIGHTS: Mapping[str, float] = {"lexical": 0.7, "sparse": 0.5, "dense": 0.3}
OTHER_WEIGHT = 0.5
RESCORING_CHANNELS = ("multivector",)
RESCORE_INTERPOLATION: float | None = 0.6
RERANK_INTERPOLATION: float | None = 0.5  # mini-cross alone ranks below the fusion (docs/experiments.md)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an opened collection offers to plans.

    channels    channels that can be searched
    rescorers   channels that can compute exact scores of given documents
    rerankers   loaded rerankers
    cur         channels of cross-encoder scores whose model is loaded
    expandable  channels that support feedback, with the kind of their stored vectors
    """

    channels: tuple[str, ...]
    rescorers: tuple[str, ...] = ()
    rerankers: tuple[str, ...] = ()
    cur: tuple[str, ...] = ()
    expandable: Mapping[str, VectorKind] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """A plan that the collection can run, and the name under which it was requested ("custom" if spelled out)."""

    name: str
    plan: Plan


def preset(name: str, capabilities: Capabilities) -> Plan:
    """The preset for this collection.

    fast      the most preferred first-stage channel alone
    balanced  all first-stage channels, fused
    best      balanced, rescored by exact MaxSim where token vectors are stored, and reranked where a reranker is loaded
    """
    first_stage = _first_stage(capabilities)
    if name == "fast":
        return Plan(channels={first_stage[0]: ChannelPlan(depth=DEFAULT_CHANNEL_DEPTH)})
    channels = {c: ChannelPlan(depth=DEFAULT_CHANNEL_DEPTH, weight=_preset_weight(c)) for c in first_stage}
    if name == "balanced":
        return Plan(channels=channels)
    rescorer = next((c for c in RESCORING_CHANNELS if c in capabilities.rescorers and c not in first_stage), None)
    return Plan(
        channels=channels,
        rescore=Rescore(channel=rescorer, depth=DEFAULT_RESCORE_DEPTH, interpolate=RESCORE_INTERPOLATION)
        if rescorer
        else None,
        rerank=Rerank(model=capabilities.rerankers[0], depth=DEFAULT_RERANK_DEPTH, interpolate=RERANK_INTERPOLATION)
        if capabilities.rerankers
        else None,
    )


def named_plans(capabilities: Capabilities, configured: Mapping[str, Plan]) -> dict[str, ResolvedPlan]:
    """Every plan that can be requested by name: the presets, then configured plans, which may replace a preset.

    Configured plans that this collection cannot run are left out.
    """
    plans = {name: preset(name, capabilities) for name in PRESETS} if capabilities.channels else {}
    plans |= {name: plan for name, plan in configured.items() if not missing_parts(plan, capabilities)}
    return {name: ResolvedPlan(name, plan) for name, plan in plans.items()}


def resolve(requested: str | Plan, capabilities: Capabilities, named: Mapping[str, ResolvedPlan]) -> ResolvedPlan:
    """The requested plan, given by name or spelled out.

    Raises InvalidInput if the name is unknown or the collection lacks something; the message lists what it has.
    """
    if isinstance(requested, Plan):
        missing = missing_parts(requested, capabilities)
        if missing:
            raise InvalidInput(f"the plan needs {missing[0]}")
        return ResolvedPlan("custom", requested)
    plan = named.get(requested)
    if plan is None:
        raise InvalidInput(
            f"unknown plan {requested[:100]!r}; {_available('plans', named)}{_nearest(requested, named)}"
        )
    return plan


def missing_parts(plan: Plan, capabilities: Capabilities) -> list[str]:
    """Descriptions of what the plan needs and the collection lacks; empty if the plan can run."""
    channels, rerankers = capabilities.channels, capabilities.rerankers
    missing = [
        f"channel {name!r}; {_available('channels', channels)}{_nearest(name, channels)}"
        for name in plan.channels
        if name not in channels
    ]
    if plan.rescore and plan.rescore.channel not in capabilities.rescorers:
        available = _available("channels that can rescore", capabilities.rescorers)
        missing.append(f"channel {plan.rescore.channel!r} for rescoring; {available}")
    for name, method in plan.feedback.channels.items() if plan.feedback else ():
        kind = capabilities.expandable.get(name)
        if kind is None:
            available = _available("channels that support feedback", capabilities.expandable)
            missing.append(f"channel {name!r} for feedback; {available}")
        elif kind not in method.kinds:
            expected = " or ".join(kind.value for kind in method.kinds)
            missing.append(
                f"{expected} vectors for feedback by {method.method!r}; channel {name!r} has {kind.value} vectors"
            )
    if plan.cur and plan.cur.channel not in capabilities.cur:
        available = _available("channels for cur", capabilities.cur)
        missing.append(f"channel {plan.cur.channel!r} for cur, and the reranker that it was built with; {available}")
    if plan.rerank and plan.rerank.model not in rerankers:
        nearest = _nearest(plan.rerank.model, rerankers)
        missing.append(f"reranker {plan.rerank.model!r}; {_available('rerankers', rerankers)}{nearest}")
    return missing


def _first_stage(capabilities: Capabilities) -> list[str]:
    """The channels that retrieve in presets, in order; token vectors retrieve only where nothing else can."""
    if not capabilities.channels:
        raise InvalidInput("the collection has no channel that can be searched with the models that are loaded")
    preferred = [c for c in FIRST_STAGE_WEIGHTS if c in capabilities.channels]
    others = [c for c in capabilities.channels if c not in FIRST_STAGE_WEIGHTS and c not in RESCORING_CHANNELS]
    return preferred + others or list(capabilities.channels[:1])


def _preset_weight(channel: str) -> float:
    return FIRST_STAGE_WEIGHTS.get(channel, OTHER_WEIGHT)


def _available(kind: str, names: Collection[str]) -> str:
    return f"the collection has the {kind} {', '.join(sorted(names))}" if names else f"the collection has no {kind}"


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:100], list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
