"""The configuration of a multivector channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chamfer.core.errors import InvalidInput
from chamfer.indexing.kernels.centroids import MOST_CENTROIDS

LEAST_CANDIDATES, FEW_DOCUMENTS = 4000, 20_000
_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


@dataclass(frozen=True, kw_only=True)
class MultivectorConfig:
    """How token vectors are stored, and how a search narrows the documents that it scores.

    storage      float32 keeps the encoder's bits, float16 changes a score by less than 0.1 %, int8 to int2 are codes
    centroids    number learnt from the build's sample (at most an eighth of its tokens); 0: none. They narrow a
                 search to `candidates` documents before MaxSim, and codes then hold the residual of a token after its
                 centroid
    candidates   the most documents that a search by centroids scores by MaxSim (at least k); None: what
                 `most_candidates` gives for the number of live documents
    margin       only candidates whose centroid score is at most this share below the k-th best are scored; 1: all
    seed         of the training of centroids
    """

    storage: Literal["float16", "float32", "int8", "int4", "int3", "int2"] = "float16"
    centroids: int = 0
    candidates: int | None = None
    margin: float = 0.13
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.centroids <= MOST_CENTROIDS:
            raise InvalidInput(f"multivector.centroids is {self.centroids}, expected 0 (none) to {MOST_CENTROIDS}")
        check_candidates(self.candidates, self.margin)

    @property
    def bits(self) -> int | None:
        """Bits of a code; None for floats."""
        return _BITS.get(self.storage)


def most_candidates(n_live: int) -> int:
    """The most candidates of a search over n_live documents: 4,000 up to 20,000 of them, then 4,000 (n / 20,000)^(2/3).

    The number of documents within the margin grows at that rate. Half of all queries have less than a quarter of the
    limit within their margin; the limit bounds the cost of a query that is near everything, and loses 0.001 of
    recall@10 (docs/experiments.md, "Where the last hundredth of recall goes").
    """
    most: float = LEAST_CANDIDATES * (n_live / FEW_DOCUMENTS) ** (2 / 3)
    return max(LEAST_CANDIDATES, round(most))


def check_candidates(count: int | None, margin: float) -> None:
    if count is not None and (not isinstance(count, int) or count < 1):
        raise InvalidInput(f"multivector candidates is {count}, expected at least 1")
    if not 0 <= margin <= 1:
        raise InvalidInput(f"multivector margin is {margin}, expected 0 to 1 (1 keeps all candidates)")
