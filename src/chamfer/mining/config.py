"""Configuration of mining."""

from __future__ import annotations

from dataclasses import dataclass

from chamfer.core.errors import InvalidInput
from chamfer.service.search.presets import DEFAULT_PRESET


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningConfig:
    """Candidates, filters, and number of negatives. None disables a filter.

    plan, depth          candidates are the first `depth` of this plan
    first_rank           best rank (from 1) that a negative may have
    last_rank            worst rank that a negative may have; 0: depth
    consistency          skip a query unless a positive is among its first n candidates; 0: never
    by                   feature in which margin and share compare a candidate with the best positive: score,
                         dense.score, judge, ...
    margin, share        drop candidates above positive - margin, above positive - share * |positive|
    beta                 guard against false negatives: drop candidates that the judge scores above positive - beta
    judge_most           drop candidates that the judge scores above this value, independent of the positive
    duplicate            drop candidates with at least this Jaccard similarity of word triples to a positive
    twin                 drop candidates with at least this cosine to a positive, in the dense channel
    clusters, nearest    number of clusters of the corpus (0: none), and how many of those nearest to the query
                         negatives may come from
    modality             metadata field with a document's modality; empty: ignore modalities. Negatives then have the
                         modality of a positive, and `wrong` more are drawn from documents of another modality that
                         outrank every positive (MM-Embed, arXiv 2411.02571); only consistency can exclude those
    keep, stride         number of negatives, drawn with a cyclic stride through the remaining candidates
    block                number of queries per checkpoint
    seed                 seed of the clustering
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
                f"mining: ranks are {self.first_rank} to {self.worst_rank}, expected an ascending range within "
                f"depth {self.depth}"
            )

    @property
    def worst_rank(self) -> int:
        """The worst rank that a negative may have."""
        return self.last_rank or self.depth
