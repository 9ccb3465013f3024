"""The schema of search plans: which channels are searched how deeply, and how their results are combined.

The same models read JSON in requests and TOML in settings. Presets, named plans and the check against a collection are
in chamfer.service.search.presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from chamfer.core.errors import InvalidInput
from chamfer.core.types import VectorKind

MAX_DEPTH = 10_000
DEFAULT_CHANNEL_DEPTH = 100
DEFAULT_RESCORE_DEPTH = 100
DEFAULT_RERANK_DEPTH = 20

Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
TermCount = Annotated[int, Field(ge=1, le=1000)]
StandoutBound = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """A model that rejects unknown fields and converts no values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def by_method(default: str, error_type: str, *methods: str) -> Discriminator:
    """A discriminator of models by their field `method`, tagged `<method>`; `default` applies where it is missing."""

    def tag(value: Any) -> str:
        method = value.get("method", default) if isinstance(value, dict) else getattr(value, "method", None)
        return f"<{method}>"

    listed = ", ".join(repr(method) for method in methods[:-1])
    message = f"Expected an object whose method is {listed} or {methods[-1]!r}"
    return Discriminator(tag, custom_error_type=error_type, custom_error_message=message)


class ChannelPlan(StrictModel):
    """How deeply one channel is searched, and its weight in the fusion. A channel of weight 0 is not searched."""

    depth: Depth = DEFAULT_CHANNEL_DEPTH
    weight: Weight = 1.0


class Interpolation(StrictModel):
    """Weighted sum of scores that were normalised within each channel (`fusion.interpolate`)."""

    method: Literal["interpolation"] = "interpolation"
    normalisation: Literal["none", "min_max", "centred", "z_score"] = "min_max"


class ReciprocalRank(StrictModel):
    """Weighted sum of 1 / (k + rank), ranks from 1 (`fusion.reciprocal_rank`)."""

    method: Literal["rrf"]
    k: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 60.0


class DistributionBased(StrictModel):
    """Weighted sum of scores scaled so that the mean +/- three deviations span 0..1 (`fusion.distribution_based`)."""

    method: Literal["dbsf"]


Fusion = Annotated[
    Annotated[Interpolation, Tag("<interpolation>")]
    | Annotated[ReciprocalRank, Tag("<rrf>")]
    | Annotated[DistributionBased, Tag("<dbsf>")],
    by_method("interpolation", "unknown_fusion", "interpolation", "rrf", "dbsf"),
]


class Rocchio(StrictModel):
    """alpha * query + beta * mean of the feedback documents' vectors (`feedback.rocchio`, `feedback.sparse_rocchio`).

    `length`: "query" scales documents to the length of the query, "stored" leaves them as they are; unit vectors are
    unaffected. `terms` is the largest number of terms that the documents add to a sparse query.
    """

    kinds: ClassVar = (VectorKind.DENSE, VectorKind.SPARSE)

    method: Literal["rocchio"] = "rocchio"
    alpha: Weight = 0.4
    beta: Weight = 0.6
    length: Literal["query", "stored"] = "query"
    terms: TermCount = 20


class Average(StrictModel):
    """The mean of the query and the k feedback documents: Rocchio with 1/(k+1) and k/(k+1)."""

    kinds: ClassVar = (VectorKind.DENSE, VectorKind.SPARSE)

    method: Literal["average"]
    length: Literal["query", "stored"] = "query"
    terms: TermCount = 20


class RelevanceModel(StrictModel):
    """RM3 on a sparse query: `original` is the weight of the query, `terms` the size of the model (`feedback.rm3`)."""

    kinds: ClassVar = (VectorKind.SPARSE,)

    method: Literal["rm3"]
    original: Share = 0.5
    terms: TermCount = 20


class TokenExpansion(StrictModel):
    """Adds token vectors: the rarest `vectors` of the feedback documents' cluster means, at most `clusters` a document.

    Their total weight is beta times that of the query (`feedback.expand_tokens`).
    """

    kinds: ClassVar = (VectorKind.TOKENS,)

    method: Literal["expansion"]
    beta: Weight = 0.5
    clusters: Annotated[int, Field(ge=1, le=64)] = 8
    vectors: Annotated[int, Field(ge=1, le=256)] = 10


FeedbackMethod = Annotated[
    Annotated[Rocchio, Tag("<rocchio>")]
    | Annotated[Average, Tag("<average>")]
    | Annotated[RelevanceModel, Tag("<rm3>")]
    | Annotated[TokenExpansion, Tag("<expansion>")],
    by_method("rocchio", "unknown_feedback", "rocchio", "average", "rm3", "expansion"),
]


class Guard(StrictModel):
    """Weakens feedback where the first ranking does not look reliable.

    z = (mean score of the feedback documents - mean score of the ranking) / standard deviation. Feedback is skipped up
    to z = `low` and has its full weight from z = `high`; in between, beta grows in proportion. RRF scores depend only
    on rank, so the guard has no effect under rrf.
    """

    low: StandoutBound = 3.0
    high: StandoutBound = 5.0

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must not exceed high")
        return self


class Feedback(StrictModel):
    """Pseudo-relevance feedback: the named channels are searched again with queries expanded from the first documents.

    `interpolate` says where rankings are interpolated (arXiv 2205.00235). The feedback documents are the first `depth`

        before  of the fused ranking; the result is made of the channels that were searched again
        after   of each channel's own ranking; all channels are fused again, using second rankings where they exist
        both    of the fused ranking; all channels are fused again

    `source` names the channel that supplies the feedback documents instead. A channel that the plan uses only for
    rescoring may be named too: it scores with the expanded query, and its documents come from the fused ranking.
    """

    interpolate: Literal["before", "after", "both"] = "both"
    source: Name | None = None
    depth: Annotated[int, Field(ge=1, le=100)] = 3
    channels: Annotated[dict[Name, FeedbackMethod], Field(min_length=1, max_length=16)]
    guard: Guard | None = Guard()


class Rescore(StrictModel):
    """Exact scores of the first `depth` candidates from the stored vectors of `channel`.

    Depth "all" scores every document that any channel found, up to MAX_DEPTH. Fusion then decides only ties and, with
    `interpolate`, the earlier scores.
    `interpolate` is the weight w in w * exact + (1 - w) * earlier, both min-max-normalised over the rescored
    candidates. Without it the exact score stands alone.
    """

    channel: Name
    depth: Depth | Literal["all"] = DEFAULT_RESCORE_DEPTH
    interpolate: Share | None = None

    @property
    def limit(self) -> int:
        """The largest number of candidates that are scored."""
        return MAX_DEPTH if self.depth == "all" else self.depth


class Cur(StrictModel):
    """Retrieval by the cross-encoder whose scores `channel` stores, within a budget of calls
    (`chamfer.indexing.families.cur.search`).

    `seeded`: the first round scores the head of the ranking so far, and `axn` takes its scores as a first estimate.
    `interpolate` is the weight w in w * exact + (1 - w) * earlier, both min-max-normalised over the scored documents.
    """

    channel: Name = "cur"
    method: Literal["axn", "adacur", "anncur"] = "axn"
    budget: Annotated[int, Field(ge=1, le=5000)] = 100
    rounds: Annotated[int, Field(ge=1, le=50)] = 5
    seeded: bool = True
    interpolate: Share | None = None


class Rerank(StrictModel):
    """The first `depth` candidates scored by a reranker that the service has loaded; `interpolate` as in Rescore."""

    model: Name
    depth: Annotated[int, Field(ge=1, le=1000)] = DEFAULT_RERANK_DEPTH
    interpolate: Share | None = None


class Plan(StrictModel):
    """A search plan: retrieve from each channel, fuse, expand queries by feedback, rescore, retrieve by a
    cross-encoder, rerank.

    Documents below the depth of a rescoring or reranking stage keep their order, behind those that it scored.
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
                raise ValueError("no channel is named; only a plan that retrieves by `cur` alone may omit channels")
        elif not any(channel.weight > 0 for channel in self.channels.values()):
            raise ValueError("every channel has weight 0; at least one weight must be above 0")
        return self

    @model_validator(mode="after")
    def _feedback_reaches_a_search(self) -> Self:
        if self.feedback is None:
            return self
        searched = {*self.active, *([self.rescore.channel] if self.rescore else [])}
        if unused := [name for name in self.feedback.channels if name not in searched]:
            raise ValueError(
                f"feedback names channel {unused[0]!r}, which the plan neither retrieves from nor rescores by"
            )
        if self.feedback.source is not None and self.feedback.source not in self.active:
            raise ValueError(
                f"feedback.source names channel {self.feedback.source!r}, which the plan does not retrieve from"
            )
        return self

    @cached_property
    def active(self) -> dict[str, ChannelPlan]:
        """The channels that are searched."""
        return {name: channel for name, channel in self.channels.items() if channel.weight > 0}

    @cached_property
    def as_json(self) -> dict[str, Any]:
        """The plan as answers show it; do not modify."""
        return self.model_dump(mode="json")


def parse_plan(value: Mapping[str, Any]) -> Plan:
    """A plan from its JSON form; InvalidInput names the first field that is invalid."""
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = "/".join(str(part) for part in first["loc"])
        raise InvalidInput(f"plan/{location}: {first['msg']}") from error
