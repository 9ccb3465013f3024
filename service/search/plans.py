"""Search plans: which channels are asked how deeply, how their answers are fused, rescored and reranked.

One model reads JSON in requests and TOML in settings. Presets are resolved against what a collection has; an
explicit plan is taken at its word, and refused when it names something that is not there.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from chamfer.core.errors import InvalidInput
from chamfer.core.types import VectorKind
from chamfer.service.search.plan_fields import MAX_DEPTH, Cur, Depth, Feedback, Name, Part, Share, Weight, by_method

PRESETS = ("fast", "balanced", "best")
DEFAULT_PRESET = "balanced"

# What the presets ask, in one place. First-stage channels in order of preference; a channel of another name comes
# after these with the weight OTHER_WEIGHT. Weights multiply min-max-normalised scores. Chosen on fairytaleqa dev and
# scifact train (docs/experiments.md, 2026-11-24).
FIRST_STAGE_WEIGHTS: Mapping[str, float] = {"lexical": 0.7, "sparse": 0.5, "dense": 0.3}
OTHER_WEIGHT = 0.5
RESCORING_CHANNELS = ("multivector",)
FIRST_STAGE_DEPTH = 100
RESCORE_DEPTH = 100
RESCORE_INTERPOLATION: float | None = 0.6
RERANK_DEPTH = 20
RERANK_INTERPOLATION: float | None = 0.5  # mini-cross alone ranks below the fusion (docs/experiments.md)


class ChannelPlan(Part):
    """How deeply one channel is asked, and its weight in the fusion. Weight 0 leaves the channel out."""

    depth: Depth = FIRST_STAGE_DEPTH
    weight: Weight = 1.0


class Interpolation(Part):
    """Weighted sum of scores after normalisation within each channel (`fusion.interpolate`)."""

    method: Literal["interpolation"] = "interpolation"
    normalisation: Literal["none", "min_max", "centred", "z_score"] = "min_max"


class ReciprocalRank(Part):
    """Weighted sum of 1 / (k + rank), ranks from 1 (`fusion.reciprocal_rank`)."""

    method: Literal["rrf"]
    k: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 60.0


class DistributionBased(Part):
    """Weighted sum of scores placed between three deviations below and above the mean (`fusion.distribution_based`)."""

    method: Literal["dbsf"]


class Rescore(Part):
    """Exact scores of the first `depth` candidates from the stored vectors of `channel`.

    With depth "all" every document that any channel found is scored: cheap channels then only have to find, each to
    its own depth, and fusion decides nothing but ties (and the blend, if there is one). MAX_DEPTH bounds it.
    `interpolate` is the share w of the exact score in w * exact + (1 - w) * earlier, both min-max-normalised over
    the rescored candidates; without it the exact score stands alone.
    """

    channel: Name
    depth: Depth | Literal["all"] = RESCORE_DEPTH
    interpolate: Share | None = None

    @property
    def limit(self) -> int:
        """The most candidates that are scored."""
        return MAX_DEPTH if self.depth == "all" else self.depth


class Rerank(Part):
    """The first `depth` candidates judged by a reranker that the service has loaded; `interpolate` as in Rescore."""

    model: Name
    depth: Annotated[int, Field(ge=1, le=1000)] = RERANK_DEPTH
    interpolate: Share | None = None


Fusion = Annotated[
    Annotated[Interpolation, Tag("<interpolation>")]
    | Annotated[ReciprocalRank, Tag("<rrf>")]
    | Annotated[DistributionBased, Tag("<dbsf>")],
    by_method("interpolation", "unknown_fusion", "interpolation", "rrf", "dbsf"),
]


class Plan(Part):
    """A search plan: retrieve from each channel, fuse, feed back, rescore, retrieve by a cross-encoder, rerank.

    A document below the depth of rescoring or reranking keeps its place after those that were judged.
    """

    channels: Annotated[dict[Name, ChannelPlan], Field(max_length=16)]
    fusion: Fusion = Interpolation()
    feedback: Feedback | None = None
    rescore: Rescore | None = None
    cur: Cur | None = None
    rerank: Rerank | None = None

    @model_validator(mode="after")
    def _some_channel_has_weight(self) -> Self:
        if not self.channels:
            if self.cur is None or self.rescore is not None:
                raise ValueError("no channel is named; only a plan whose cur stage retrieves alone may do without")
        elif not any(channel.weight > 0 for channel in self.channels.values()):
            raise ValueError("every channel has weight 0; at least one weight must be above 0")
        return self

    @model_validator(mode="after")
    def _feedback_reaches_a_search(self) -> Self:
        if self.feedback is None:
            return self
        searched = {*self.active, *([self.rescore.channel] if self.rescore else [])}
        if idle := [name for name in self.feedback.channels if name not in searched]:
            raise ValueError(f"feedback to channel {idle[0]!r}, which the plan neither retrieves from nor rescores by")
        if self.feedback.source is not None and self.feedback.source not in self.active:
            raise ValueError(f"feedback from channel {self.feedback.source!r}, which the plan does not retrieve from")
        return self

    @cached_property
    def active(self) -> dict[str, ChannelPlan]:
        """The channels that take part."""
        return {name: channel for name, channel in self.channels.items() if channel.weight > 0}

    @cached_property
    def as_json(self) -> dict[str, Any]:
        """The plan as it is shown in answers; not to be changed."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Features:
    """What an opened collection offers to plans."""

    channels: tuple[str, ...]
    rescorers: tuple[str, ...] = ()
    rerankers: tuple[str, ...] = ()
    cur: tuple[str, ...] = ()  # channels of cross-encoder scores whose model is loaded
    expandable: Mapping[str, VectorKind] = field(default_factory=dict)  # channels that feedback can change, and how


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """A plan that the collection can run, and the name under which it was asked ("custom" if it was spelled out)."""

    name: str
    plan: Plan


def preset(name: str, features: Features) -> Plan:
    """The preset on this collection.

    fast      the first of the preferred channels alone
    balanced  all first-stage channels, fused
    best      balanced, rescored by exact MaxSim where token vectors are stored, and reranked where a reranker is loaded
    """
    first = _first_stage(features)
    if name == "fast":
        return Plan(channels={first[0]: ChannelPlan(depth=FIRST_STAGE_DEPTH)})
    channels = {c: ChannelPlan(depth=FIRST_STAGE_DEPTH, weight=_preset_weight(c)) for c in first}
    if name == "balanced":
        return Plan(channels=channels)
    rescorer = next((c for c in RESCORING_CHANNELS if c in features.rescorers and c not in first), None)
    return Plan(
        channels=channels,
        rescore=Rescore(channel=rescorer, depth=RESCORE_DEPTH, interpolate=RESCORE_INTERPOLATION) if rescorer else None,
        rerank=Rerank(model=features.rerankers[0], depth=RERANK_DEPTH, interpolate=RERANK_INTERPOLATION)
        if features.rerankers
        else None,
    )


def named_plans(features: Features, configured: Mapping[str, Plan]) -> dict[str, ResolvedPlan]:
    """Every plan that can be asked by name: presets, then configured ones, which may replace a preset.

    A configured plan that this collection cannot run is left out.
    """
    plans = {name: preset(name, features) for name in PRESETS} if features.channels else {}
    plans |= {name: plan for name, plan in configured.items() if not missing_parts(plan, features)}
    return {name: ResolvedPlan(name, plan) for name, plan in plans.items()}


def resolve(asked: str | Plan, features: Features, named: Mapping[str, ResolvedPlan]) -> ResolvedPlan:
    """The plan that was asked by name or spelled out.

    Raises InvalidInput when the name is unknown or a part is missing, saying what the collection has.
    """
    if isinstance(asked, Plan):
        missing = missing_parts(asked, features)
        if missing:
            raise InvalidInput(f"the plan needs {missing[0]}")
        return ResolvedPlan("custom", asked)
    found = named.get(asked)
    if found is None:
        raise InvalidInput(f"unknown plan {asked[:100]!r}; {_offer('plans', named)}{_nearest(asked, named)}")
    return found


def missing_parts(plan: Plan, features: Features) -> list[str]:
    """What the plan needs and the collection lacks, in words; empty if it can run."""
    missing = [
        f"channel {name!r}; {_offer('channels', features.channels)}{_nearest(name, features.channels)}"
        for name in plan.channels
        if name not in features.channels
    ]
    if plan.rescore and plan.rescore.channel not in features.rescorers:
        missing.append(
            f"channel {plan.rescore.channel!r} for rescoring; {_offer('channels that can rescore', features.rescorers)}"
        )
    for name, method in plan.feedback.channels.items() if plan.feedback else ():
        kind = features.expandable.get(name)
        if kind is None:
            missing.append(f"channel {name!r} for feedback; {_offer('channels with feedback', features.expandable)}")
        elif kind not in method.kinds:
            wanted = " or ".join(kind.value for kind in method.kinds)
            missing.append(
                f"{wanted} vectors for feedback by {method.method!r}; channel {name!r} has {kind.value} ones"
            )
    if plan.cur and plan.cur.channel not in features.cur:
        missing.append(
            f"channel {plan.cur.channel!r} for cur, and the reranker it was built with; "
            f"{_offer('channels for cur', features.cur)}"
        )
    if plan.rerank and plan.rerank.model not in features.rerankers:
        missing.append(
            f"reranker {plan.rerank.model!r}; {_offer('rerankers', features.rerankers)}"
            f"{_nearest(plan.rerank.model, features.rerankers)}"
        )
    return missing


def _first_stage(features: Features) -> list[str]:
    """Channels that retrieve in presets, in order; token vectors retrieve only where nothing else can."""
    if not features.channels:
        raise InvalidInput("the collection has no channel that can be searched with what is loaded")
    preferred = [c for c in FIRST_STAGE_WEIGHTS if c in features.channels]
    others = [c for c in features.channels if c not in FIRST_STAGE_WEIGHTS and c not in RESCORING_CHANNELS]
    return preferred + others or list(features.channels[:1])


def _preset_weight(channel: str) -> float:
    return FIRST_STAGE_WEIGHTS.get(channel, OTHER_WEIGHT)


def _offer(what: str, names: Collection[str]) -> str:
    return f"the collection has the {what} {', '.join(sorted(names))}" if names else f"the collection has no {what}"


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:100], list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
