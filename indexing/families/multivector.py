"""Family `multivector`: token vectors of every document, exact MaxSim over all of them or over given rows.

With centroids, a search first ranks all documents by centroid scores (chamfer.indexing.kernels.centroids), which costs
one byte maximum a token, and scores only the best of them by MaxSim. `search_mode` "exact" scores them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import F32, I64, Array, Bool, Candidates, Document, Encoding, TokenVectors, VectorKind
from chamfer.indexing.families.family import OnCpu, check_finite, check_tokens
from chamfer.indexing.families.token_storage import StoredTokens, merge_tokens
from chamfer.indexing.kernels.centroids import MOST_CENTROIDS, assign, score_table, train
from chamfer.indexing.kernels.codes import TokenCodec, encode, learn_step, maxsim_codes_error
from chamfer.indexing.kernels.maxsim import fast_error
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth, near_best
from chamfer.indexing.rows.segment_part import Codec, SegmentPart, allowed_rows, locate, starts_of

F64 = NDArray[np.float64]
SAMPLE = 32
LEAST_CANDIDATES, FEW_DOCUMENTS = 4000, 20_000
SearchMode = Literal["exact", "centroids"]
_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_LONGER_AS_CODE = 1.002  # at most, by the rounding of the scale and of the decoded values


@dataclass(frozen=True, kw_only=True)
class MultivectorConfig:
    """storage: float32 keeps the bits, float16 moves a score by less than 0.1 %, int8 to int2 are codes.

    centroids    how many are learnt from the build's sample (an eighth of its tokens at most); 0: none. They narrow a
                 search to `candidates` documents before MaxSim, and codes hold what is left of a token after its own
    candidates   how many documents a search by centroids scores by MaxSim at most (k of them at least); None: as
                 many as `most_candidates` gives for the live documents
    margin       of those only the ones whose centroid score is at most this share below the k-th best; 1: all
    seed         of the centroids
    """

    storage: Literal["float16", "float32", "int8", "int4", "int3", "int2"] = "float16"
    centroids: int = 0
    candidates: int | None = None
    margin: float = 0.13
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.centroids <= MOST_CENTROIDS:
            raise InvalidInput(f"multivector.centroids is {self.centroids}, expected 0 (none) to {MOST_CENTROIDS}")
        _check_candidates(self.candidates, self.margin)

    @property
    def bits(self) -> int | None:
        """Of a code; None for floats."""
        return _BITS.get(self.storage)


class MultivectorFamily(OnCpu):
    """See chamfer.indexing.families.family.Family. Arrays: those of
    chamfer.indexing.families.token_storage.StoredTokens, largest_norm f64 [1].

    Codec: centroids f32 [K, D] (the mean alone if none were asked for), for codes step f32 [D]; none for plain floats.
    """

    name: ClassVar[str] = "multivector"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS

    def __init__(self, config: MultivectorConfig) -> None:
        self.config = config
        self._centroids: F32 | None = None
        self._codec: TokenCodec | None = None

    @property
    def learns(self) -> bool:
        return bool(self._needs)

    def learn(self, encoding: Encoding | None) -> Codec:
        """Centroids and steps from the token vectors of the sample."""
        if encoding is None or encoding.tokens is None or not self._needs:
            return {}
        check_finite(encoding.tokens.values, "document")
        tokens = encoding.tokens.values.astype(np.float32)
        if not len(tokens):
            tokens = np.zeros((1, encoding.tokens.dim), dtype=np.float32)
        centroids = train(tokens, max(self.config.centroids, 1), self.config.seed)
        if self.config.bits is None:
            return {"centroids": centroids}
        return {"centroids": centroids, "step": learn_step(tokens, centroids, self.config.bits)}

    def with_codec(self, codec: Codec) -> Self:
        out = type(self)(self.config)
        if stray := set(codec) - self._needs:
            raise Incompatible(f"the multivector channel has no use for {sorted(stray)} in the collection's codec")
        if codec:
            if missing := self._needs - set(codec):
                raise Incompatible(
                    f"the multivector channel's codec lacks {sorted(missing)}; build the collection again"
                )
            out._centroids = np.array(codec["centroids"])
            if self.config.bits is not None:
                out._codec = TokenCodec(out._centroids, np.array(codec["step"]), self.config.bits)
        return out

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the multivector channel needs token vectors from the encoder")
        if self._needs and self._centroids is None:
            raise InvalidInput("the multivector channel has no codec yet; a collection learns it from its sample")
        tokens = encoding.tokens.values
        self._check(tokens)
        norms = np.linalg.norm(tokens.astype(np.float32), axis=1)
        out = {
            "offsets": encoding.tokens.offsets,
            "largest_norm": norms.max(initial=0.0, keepdims=True).astype(np.float64),
        }
        if self._codec is None:
            out["values"] = tokens.astype(self.config.storage)
            if self.config.centroids and self._centroids is not None:
                out["centroid_ids"] = assign(tokens, self._centroids).astype(np.uint16)
            return out
        out["values"], ids, out["scales"] = encode(tokens, self._codec)
        out["largest_norm"] *= _LONGER_AS_CODE
        return out | ({"centroid_ids": ids} if self.config.centroids else {})

    def _check(self, tokens: Array) -> None:
        """InvalidInput for token vectors [T, D] that the channel cannot keep."""
        dim = tokens.shape[1] if self._centroids is None else self._centroids.shape[1]
        check_tokens(tokens, dim, self.name, "document")
        if len(tokens) and self._centroids is not None and not self._centroids.any():
            raise InvalidInput(
                "the multivector channel's centroids were learnt from a sample without a token; build the collection "
                "again with documents that have some, or with multivector.storage float16 and multivector.centroids 0"
            )
        largest = np.abs(tokens).max(initial=0)
        if self.config.storage != "float32" and largest > np.finfo(np.float16).max:
            raise InvalidInput(
                f"a token vector holds {largest:.3g}, which {self.config.storage} storage cannot keep; encode vectors "
                "of unit length, or set multivector.storage to float32"
            )

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return merge_tokens(parts)

    def open(self, parts: Sequence[SegmentPart]) -> MultivectorRetriever:
        mode: SearchMode = "centroids" if self.config.centroids else "exact"
        centroids = self._centroids if self.config.centroids else None
        return MultivectorRetriever(parts, self._codec, centroids, mode, (self.config.candidates, self.config.margin))

    @property
    def _needs(self) -> set[str]:
        if self.config.bits is not None:
            return {"centroids", "step"}
        return {"centroids"} if self.config.centroids else set()


class MultivectorRetriever:
    """MaxSim over the parts' token vectors, exact or over the best candidates; also a Rescorer."""

    stored_kind: ClassVar[VectorKind] = VectorKind.TOKENS

    def __init__(
        self,
        parts: Sequence[SegmentPart],
        codec: TokenCodec | None = None,
        centroids: F32 | None = None,
        search_mode: SearchMode = "exact",
        candidates: tuple[int | None, float] = (MultivectorConfig.candidates, MultivectorConfig.margin),
    ) -> None:
        """candidates: how many at most, and the margin; see MultivectorConfig.

        Incompatible if the parts' token vectors differ in their dimensions.
        """
        self._parts = parts
        self._codec = codec
        self._centroids = centroids
        self._mode: SearchMode = search_mode
        self._asked, self._margin = candidates
        n_live = sum(part.n_live for part in parts)
        self._most_candidates = most_candidates(n_live) if self._asked is None else self._asked
        self._starts = starts_of(parts)
        self._tokens = [StoredTokens(part.arrays, codec) for part in parts]
        if len(dims := {tokens.dim for tokens in self._tokens}) > 1:
            raise Incompatible(f"segments hold token vectors of {sorted(dims)} dimensions; build the collection again")
        self._dim = dims.pop() if dims else None
        self._sample: tuple[F32, I64] | None = None
        self._largest_norm = max((float(p.arrays["largest_norm"][0]) for p in parts), default=0.0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def params(self) -> dict[str, Any]:
        """What a search goes by; `candidates` and `margin` stand by centroids alone."""
        if self._mode == "exact":
            return {"search_mode": self._mode}
        return {"search_mode": self._mode, "candidates": self._most_candidates, "margin": self._margin}

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest MaxSim a query, of all live and allowed rows or, by centroids, of the candidates."""
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        rows = np.arange(len(self), dtype=np.int64) if usable is None else np.flatnonzero(usable).astype(np.int64)
        ranked: list[tuple[Array, Array]] = []
        for query in self._matrices(queries):
            chosen = self._candidates(query, rows, k)
            near = chosen[near_best(self._score(query, chosen, StoredTokens.maxsim_fast), k, self._error(query))]
            scores = self._score(query, near, StoredTokens.maxsim_rows)
            places = best(scores, k)
            ranked.append((near[places], scores[places]))
        return as_candidates(ranked, k)

    def centroid_candidates(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest centroid score a query: the candidates themselves, before MaxSim."""
        check_depth(k)
        if self._centroids is None:
            raise InvalidInput("the multivector channel has no centroids; build it with multivector.centroids")
        usable = allowed_rows(self._parts, allowed)
        ranked: list[tuple[Array, Array]] = []
        for query in self._matrices(queries):
            scores = self._centroid_scores(query, self._centroids)
            if usable is not None:
                scores[~usable] = -np.inf
            places = best(scores, k)
            ranked.append((places, scores[places]))
        return as_candidates(ranked, k)

    def score(self, queries: TokenVectors, rows: I64) -> F32:
        """MaxSim f32 [Q, K] of rows i64 [Q, K], the quickest way; padding rows (-1) score -inf."""
        out = np.full(rows.shape, -np.inf, dtype=np.float32)
        for q, query in enumerate(self._matrices(queries)):
            real = rows[q] >= 0
            out[q, real] = self._score(query, rows[q, real], StoredTokens.maxsim_fast)
        return out

    def vectors(self, rows: I64) -> TokenVectors:
        """Stored token vectors f32 of rows, decoded if they are codes."""
        part_of, local = locate(self._starts, rows)
        matrices = [self._tokens[number].matrix(int(row)) for number, row in zip(part_of, local, strict=True)]
        dim = self._tokens[0].dim if self._tokens else 0
        ends = np.cumsum([0, *map(len, matrices)]).astype(np.int64)
        return TokenVectors(np.concatenate([np.empty((0, dim), dtype=np.float32), *matrices]), ends)

    def stored_form(self, queries: TokenVectors) -> TokenVectors:
        return queries

    def commonness(self, vectors: F32) -> F64:
        """How well an average document matches each vector f32 [n, D]: mean of max_j <v, d_j>, f64 [n].

        Over SAMPLE live documents with tokens, evenly spaced through the collection; read and kept at the first call.
        InvalidInput for vectors of other dimensions.
        """
        if self._sample is None:
            self._sample = self._draw_sample()
        tokens, starts = self._sample
        check_tokens(vectors, self._dim or vectors.shape[1], MultivectorFamily.name, "query")
        if not len(starts):
            return np.zeros(len(vectors))
        best_match = np.maximum.reduceat(vectors @ tokens.T, starts, axis=1)
        out: F64 = best_match.mean(axis=1, dtype=np.float64)
        return out

    def _draw_sample(self) -> tuple[F32, I64]:
        usable = allowed_rows(self._parts, None)
        rows = np.arange(len(self), dtype=np.int64) if usable is None else np.flatnonzero(usable).astype(np.int64)
        sample = self.vectors(rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))])
        return sample.values, sample.offsets[:-1][np.diff(sample.offsets) > 0]

    def with_params(
        self,
        *,
        search_mode: str | None = None,
        candidates: int | None = None,
        margin: float | None = None,
        **unknown: Any,
    ) -> Self:
        """search_mode "exact" or "centroids"; candidates and margin: see MultivectorConfig."""
        if unknown:
            raise InvalidInput(f"unknown parameters {sorted(unknown)}, known are search_mode, candidates and margin")
        mode = self._mode if search_mode is None else search_mode
        if mode != "exact" and (mode != "centroids" or self._centroids is None):
            known = "exact" if self._centroids is None else "exact or centroids"
            raise InvalidInput(f"search_mode is {mode!r}, expected {known} (multivector.centroids adds centroids)")
        count = self._asked if candidates is None else candidates
        share = self._margin if margin is None else margin
        _check_candidates(count, share)
        chosen: SearchMode = "exact" if mode == "exact" else "centroids"
        return type(self)(self._parts, self._codec, self._centroids, chosen, (count, share))

    def _candidates(self, query: F32, rows: I64, k: int) -> I64:
        """Those of the rows i64 [n] that centroid scores leave, ascending; all of them in exact mode."""
        if self._mode == "exact" or self._centroids is None or len(rows) <= k or not len(query):
            return rows
        scores = self._centroid_scores(query, self._centroids)[rows]
        places = best(scores, max(k, self._most_candidates))
        kept = scores[places]
        return np.sort(rows[places[kept >= (1 - self._margin) * kept[k - 1]]])

    def _centroid_scores(self, query: F32, centroids: F32) -> F32:
        """f32 [N], whole numbers."""
        table = score_table(query, centroids)
        parts = [tokens.centroid_scores(table) for tokens in self._tokens]
        return np.concatenate([np.empty(0, np.int32), *parts]).astype(np.float32)

    def _score(self, query: F32, rows: I64, how: Callable[[StoredTokens, F32, I64], F32]) -> F32:
        part_of, local = locate(self._starts, rows)
        out = np.empty(len(rows), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            out[here] = how(self._tokens[number], query, local[here])
        return out

    def _matrices(self, queries: TokenVectors) -> Iterator[F32]:
        check_tokens(queries.values, self._dim or queries.dim, MultivectorFamily.name, "query")
        for start, stop in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
            yield np.asarray(queries.values[start:stop], dtype=np.float32)

    def _error(self, query: F32) -> float:
        """How far the quickest MaxSim may be from the one that decides."""
        coded = 0.0 if self._codec is None else maxsim_codes_error(query, self._codec, self._largest_norm)
        return max(coded, fast_error(query, self._largest_norm))


def most_candidates(n_live: int) -> int:
    """The most candidates of a search over n_live documents: 4,000 up to 20,000 of them, then x (n / 20,000)^(2/3).

    What lies within the margin of a query grows so. Half of all queries have less than a quarter of the limit there; it
    bounds what a query costs that is near everything, and costs 0.001 of recall@10 (docs/experiments.md, "Where the
    last hundredth of recall goes").
    """
    most: float = LEAST_CANDIDATES * (n_live / FEW_DOCUMENTS) ** (2 / 3)
    return max(LEAST_CANDIDATES, round(most))


def _check_candidates(count: int | None, margin: float) -> None:
    if count is not None and (not isinstance(count, int) or count < 1):
        raise InvalidInput(f"multivector candidates is {count}, expected at least 1")
    if not 0 <= margin <= 1:
        raise InvalidInput(f"multivector margin is {margin}, expected 0 to 1 (1 keeps all candidates)")
