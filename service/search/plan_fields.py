"""The words of a plan, and the part of it that speaks of feedback."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from chamfer.core.types import VectorKind

MAX_DEPTH = 10_000

Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Terms = Annotated[int, Field(ge=1, le=1000)]


class Part(BaseModel):
    """A part of a plan: unknown fields are refused, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rocchio(Part):
    """alpha * query + beta * mean of the feedback documents' vectors (`feedback.rocchio`, `feedback.sparse_rocchio`).

    `length`: documents are scaled to the query's length, or taken as `stored`; the same on unit vectors. `terms` is
    the most terms that the documents add to a sparse query.
    """

    kinds: ClassVar = (VectorKind.DENSE, VectorKind.SPARSE)

    method: Literal["rocchio"] = "rocchio"
    alpha: Weight = 0.4
    beta: Weight = 0.6
    length: Literal["query", "stored"] = "query"
    terms: Terms = 20


class Average(Part):
    """The mean of the query and the k feedback documents: Rocchio with 1/(k+1) and k/(k+1)."""

    kinds: ClassVar = (VectorKind.DENSE, VectorKind.SPARSE)

    method: Literal["average"]
    length: Literal["query", "stored"] = "query"
    terms: Terms = 20


class RelevanceModel(Part):
    """RM3 on a sparse query: `original` is the query's share, `terms` the size of the model (`feedback.rm3`)."""

    kinds: ClassVar = (VectorKind.SPARSE,)

    method: Literal["rm3"]
    original: Share = 0.5
    terms: Terms = 20


class TokenExpansion(Part):
    """More token vectors: the rarest `vectors` of the feedback documents' cluster means, at most `clusters` a document.

    Together they count as much as beta times the query (`feedback.expand_tokens`).
    """

    kinds: ClassVar = (VectorKind.TOKENS,)

    method: Literal["expansion"]
    beta: Weight = 0.5
    clusters: Annotated[int, Field(ge=1, le=64)] = 8
    vectors: Annotated[int, Field(ge=1, le=256)] = 10


class Guard(Part):
    """Feedback as far as the first ranking can be trusted.

    Its first documents stand out by z = (their mean score - the mean) / deviation. Below `low` feedback is skipped,
    from `high` it counts in full, between them beta is weakened in proportion. Reciprocal ranks always stand out alike.
    """

    low: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 3.0
    high: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 5.0

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Cur(Part):
    """Retrieval by the cross-encoder whose scores `channel` keeps, in `budget` of its calls
    (`chamfer.indexing.families.cur.search`).

    `seeded`: the first round takes the head of the ranking so far, and `axn` its scores as a first guess. `interpolate`
    is the share w of the exact score in w * exact + (1 - w) * earlier, both min-max-normalised over what was scored.
    """

    channel: Name = "cur"
    method: Literal["axn", "adacur", "anncur"] = "axn"
    budget: Annotated[int, Field(ge=1, le=5000)] = 100
    rounds: Annotated[int, Field(ge=1, le=50)] = 5
    seeded: bool = True
    interpolate: Share | None = None


def by_method(default: str, error_type: str, *methods: str) -> Discriminator:
    """What tells the forms of a part apart: their `method`, tagged `<method>`, and `default` where none is named."""

    def tag(value: Any) -> str:
        method = value.get("method", default) if isinstance(value, dict) else getattr(value, "method", None)
        return f"<{method}>"

    named = ", ".join(repr(method) for method in methods[:-1])
    message = f"Expected an object whose method is {named} or {methods[-1]!r}"
    return Discriminator(tag, custom_error_type=error_type, custom_error_message=message)


FeedbackMethod = Annotated[
    Annotated[Rocchio, Tag("<rocchio>")]
    | Annotated[Average, Tag("<average>")]
    | Annotated[RelevanceModel, Tag("<rm3>")]
    | Annotated[TokenExpansion, Tag("<expansion>")],
    by_method("rocchio", "unknown_feedback", "rocchio", "average", "rm3", "expansion"),
]


class Feedback(Part):
    """A second round: the named channels are searched again with what the first documents add to the query.

    `interpolate` says where rankings are interpolated (arXiv 2205.00235). The feedback documents are the first `depth`

        before  of the fused ranking; the channels of the second round alone make the result
        after   of each channel's own ranking; all channels are fused again, by second rankings where there are some
        both    of the fused ranking; all channels are fused again

    `source` names the channel that gives the feedback documents instead. A channel that the plan only rescores by may
    be named: it scores with the expanded query, and its documents are those of the fused ranking.
    """

    interpolate: Literal["before", "after", "both"] = "both"
    source: Name | None = None
    depth: Annotated[int, Field(ge=1, le=100)] = 3
    channels: Annotated[dict[Name, FeedbackMethod], Field(min_length=1, max_length=16)]
    guard: Guard | None = Guard()
