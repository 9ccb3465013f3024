"""What mining is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from chamfer.core.errors import InvalidInput
from chamfer.service.search.presets import DEFAULT_PRESET


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningConfig:
    """Candidates, filters, and how many negatives are drawn. None leaves a filter out.

    plan, depth          candidates are the first `depth` of this plan
    first_rank           the best rank (from 1) that a negative may have; last_rank the worst, 0: depth
    consistency          a query counts only with a positive among the first so many; 0: always
    by                   the feature that margin and share compare with the best positive's: score, dense.score, judge
    margin, share        drop what is above positive - margin, above positive - share * |positive|
    beta                 the guard against false negatives by the judge: drop what it puts above positive - beta
    judge_most           drop what the judge puts above this, whatever the positive has
    duplicate            drop what shares this much (Jaccard of word triples) with a positive
    twin                 drop what has this cosine, by the dense channel, with a positive
    clusters, nearest    cut the corpus into so many clusters (0: none) and drop what is not in the nearest to the query
    modality             the metadata field that says a document's modality; none: modalities do not count. Negatives
                         then have that of a positive, and `wrong` more are drawn of those that outrank every positive
                         in another one (MM-Embed, arXiv 2411.02571), which no other filter but consistency drops
    keep, stride         so many negatives by a cyclic stride through the survivors
    block                queries between two points from which a killed run goes on
    seed                 of the clusters
    """

    plan: str = DEFAULT_PRESET
    depth: int = 100
    first_rank: int = 1
    last_rank: int = 0
    consistency: int = 50
    by: str = "score"
    margin: float | None = None
    share: float | None = None
    beta: float = 0.05
    judge_most: float | None = None
    duplicate: float | None = 0.5
    twin: float | None = 0.95
    clusters: int = 0
    nearest: int = 3
    modality: str = ""
    wrong: int = 4
    keep: int = 8
    stride: int = 5
    block: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("depth", "first_rank", "keep", "stride", "block", "nearest"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"mining: {name} is {getattr(self, name)}, expected 1 or more")
        for name in ("last_rank", "consistency", "clusters", "wrong"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"mining: {name} is {getattr(self, name)}, expected 0 or more")
        if not self.first_rank <= self.worst_rank <= self.depth:
            raise InvalidInput(
                f"mining: ranks {self.first_rank} to {self.worst_rank} do not fit into depth {self.depth}"
            )

    @property
    def worst_rank(self) -> int:
        """The last rank that a negative may have."""
        return self.last_rank or self.depth
