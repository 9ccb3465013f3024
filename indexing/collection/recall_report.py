"""The recall floor of a collection and what was measured against it; both are stored in snapshot manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chamfer.core.errors import InvalidInput

K = 10
"""Recall is measured against this many top documents of the exact MaxSim ranking."""


@dataclass(frozen=True, kw_only=True)
class FloorConfig:
    """The lowest recall that a build accepts from a channel of MaxSim candidates.

    recall     the share of the exact top 10 that `depth` candidates must contain, 0 to 1; 0 accepts any channel
    depth      number of candidates that are rescored exactly; set it to the plan's rescore depth
    queries    number of queries the recall is measured with: the user's, or sampled from the documents
    """

    recall: float = 0.8
    depth: int = 100
    queries: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.recall <= 1 or self.depth < K or self.queries < 1:
            raise InvalidInput(
                f"build.floor recall {self.recall}, depth {self.depth}, queries {self.queries}; "
                f"expected 0 <= recall <= 1, depth >= {K} and queries >= 1"
            )


@dataclass(frozen=True, slots=True)
class ChannelRecall:
    """The recall of the exact MaxSim top 10 that a channel reached on the sample of a build.

    recall     at `depth` candidates over the sample's `documents`; mean over `queries`
    exponent   growth of the candidates needed with the collection (chamfer.indexing.planning.candidate_recall.growth)
    by_depth   recall at other depths in the sample, from which the recall in larger collections is extrapolated
    made_up    whether the queries were sampled from the documents' own text
    """

    recall: float
    depth: int
    exponent: float
    documents: int
    queries: int
    made_up: bool
    by_depth: Mapping[str, float]

    def at(self, n_documents: int) -> float:
        """The recall expected at `depth` in a collection of n_documents: that of the next lower measured depth."""
        limit = depth_in_sample(self.depth, self.documents, n_documents, self.exponent)
        measured = [(int(depth), value) for depth, value in self.by_depth.items() if int(depth) <= limit]
        return max(measured)[1] if measured else 0.0


def depth_in_sample(depth: int, n_sample: int, n_documents: int, exponent: float) -> int:
    """The depth in the sample with the same recall as `depth` in the collection: depth (n_sample / N)^exponent."""
    if n_documents <= n_sample:
        return depth
    return int(depth * (n_sample / n_documents) ** exponent + 1e-9)
