"""Search of a multivector channel: MaxSim over all token vectors, or over the candidates that centroids select."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.protocols import Expandable, Rescorer, Retriever
from chamfer.core.types import F32, I64, Array, Bool, Candidates, TokenVectors, VectorKind
from chamfer.indexing.families.family import check_tokens
from chamfer.indexing.families.multivector.config import MultivectorConfig, check_candidates, most_candidates
from chamfer.indexing.families.multivector.token_storage import StoredTokens
from chamfer.indexing.kernels.centroids import scan, score_table
from chamfer.indexing.kernels.codes import TokenCodec, maxsim_codes_error
from chamfer.indexing.kernels.maxsim import fast_error
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth, near_best
from chamfer.indexing.rows.scan import few_rows
from chamfer.indexing.rows.segment_part import SegmentPart, allowed_rows, locate, part_of_mask, starts_of

NAME = "multivector"
SAMPLE = 32
F64 = NDArray[np.float64]
SearchMode = Literal["exact", "centroids"]
CentroidScan = Callable[[F32], F32]
"""Returns the centroid scores f32 [n], whole numbers, of n rows for a query f32 [Tq, D]."""


class MultivectorRetriever(Retriever[TokenVectors], Rescorer[TokenVectors], Expandable[TokenVectors]):
    """MaxSim over the parts' token vectors, exact or over the best candidates."""

    stored_kind: ClassVar[VectorKind] = VectorKind.TOKENS

    def __init__(
        self,
        parts: Sequence[SegmentPart],
        codec: TokenCodec | None = None,
        centroids: F32 | None = None,
        search_mode: SearchMode = "exact",
        candidates: tuple[int | None, float] = (MultivectorConfig.candidates, MultivectorConfig.margin),
    ) -> None:
        """candidates: their largest number, and the margin; see MultivectorConfig.

        Raises Incompatible if the parts' token vectors differ in their dimensions.
        """
        self._parts = parts
        self._codec = codec
        self._centroids = centroids
        self._mode: SearchMode = search_mode
        self._given_candidates, self._margin = candidates
        n_live = sum(part.n_live for part in parts)
        self._most_candidates = most_candidates(n_live) if self._given_candidates is None else self._given_candidates
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
        """The parameters in effect; `candidates` and `margin` only for a search by centroids."""
        if self._mode == "exact":
            return {"search_mode": self._mode}
        return {"search_mode": self._mode, "candidates": self._most_candidates, "margin": self._margin}

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest MaxSim per query, of all live and allowed rows or, by centroids, of the candidates.

        Exact mode reads only the token vectors of usable documents.
        """
        check_depth(k)
        usable = allowed_rows(self._parts, allowed)
        rows = self._rows(usable)
        centroid_scan = None
        if self._mode == "centroids" and self._centroids is not None and len(rows) > k:
            centroid_scan = self._centroid_scan(self._centroids, usable)
        ranked: list[tuple[Array, Array]] = []
        for query in self._matrices(queries):
            chosen = rows
            if centroid_scan is not None and len(query):
                chosen = self._candidates(centroid_scan(query), rows, k)
            near = chosen[near_best(self._score(query, chosen, StoredTokens.maxsim_fast), k, self._error(query))]
            scores = self._score(query, near, StoredTokens.maxsim_rows)
            order = best(scores, k)
            ranked.append((near[order], scores[order]))
        return as_candidates(ranked, k)

    def centroid_candidates(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest centroid score per query: the candidates before MaxSim."""
        check_depth(k)
        if self._centroids is None:
            raise InvalidInput("the multivector channel has no centroids; build it with multivector.centroids")
        usable = allowed_rows(self._parts, allowed)
        rows, centroid_scan = self._rows(usable), self._centroid_scan(self._centroids, usable)
        ranked: list[tuple[Array, Array]] = []
        for query in self._matrices(queries):
            scores = centroid_scan(query)
            order = best(scores, k)
            ranked.append((rows[order], scores[order]))
        return as_candidates(ranked, k)

    def score(self, queries: TokenVectors, rows: I64) -> F32:
        """MaxSim f32 [Q, K] of rows i64 [Q, K] by the fastest kernel; padding rows (-1) score -inf."""
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for q, query in enumerate(self._matrices(queries)):
            real = rows[q] >= 0
            scores[q, real] = self._score(query, rows[q, real], StoredTokens.maxsim_fast)
        return scores

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

        Over SAMPLE live documents with tokens, evenly spaced through the collection; read at the first call and
        cached. Raises InvalidInput for vectors of other dimensions.
        """
        if self._sample is None:
            self._sample = self._draw_sample()
        tokens, starts = self._sample
        check_tokens(vectors, self._dim or vectors.shape[1], NAME, "query")
        if not len(starts):
            return np.zeros(len(vectors))
        best_match = np.maximum.reduceat(vectors @ tokens.T, starts, axis=1)
        means: F64 = best_match.mean(axis=1, dtype=np.float64)
        return means

    def _draw_sample(self) -> tuple[F32, I64]:
        rows = self._rows(allowed_rows(self._parts, None))
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
            modes = "exact" if self._centroids is None else "exact or centroids"
            raise InvalidInput(f"search_mode is {mode!r}, expected {modes} (multivector.centroids adds centroids)")
        count = self._given_candidates if candidates is None else candidates
        share = self._margin if margin is None else margin
        check_candidates(count, share)
        chosen: SearchMode = "exact" if mode == "exact" else "centroids"
        return type(self)(self._parts, self._codec, self._centroids, chosen, (count, share))

    def _rows(self, usable: Bool | None) -> I64:
        """The usable rows, ascending."""
        return np.arange(len(self), dtype=np.int64) if usable is None else np.flatnonzero(usable).astype(np.int64)

    def _candidates(self, scores: F32, rows: I64, k: int) -> I64:
        """The candidates among rows i64 [n], n > k, by their centroid scores f32 [n], ascending."""
        order = best(scores, max(k, self._most_candidates))
        kept = scores[order]
        return np.sort(rows[order[kept >= (1 - self._margin) * kept[k - 1]]])

    def _centroid_scan(self, centroids: F32, usable: Bool | None) -> CentroidScan:
        """Scores the usable rows, ascending; where these are few in a segment, it reads no other rows' centroids."""
        parts: list[tuple[Array, I64, Bool | None]] = []
        for number, tokens in enumerate(self._tokens):
            mask = part_of_mask(self._starts, number, usable)
            few = few_rows(mask)
            parts.append((*tokens.centroid_ids(few), mask if few is None else None))

        def centroid_scan(query: F32) -> F32:
            table = score_table(query, centroids)
            scores = [np.empty(0, dtype=np.int32)]
            for ids, offsets, mask in parts:
                each = scan(table, ids, offsets)
                scores.append(each if mask is None else each[mask])
            return np.concatenate(scores).astype(np.float32)

        return centroid_scan

    def _score(self, query: F32, rows: I64, kernel: Callable[[StoredTokens, F32, I64], F32]) -> F32:
        part_of, local = locate(self._starts, rows)
        scores = np.empty(len(rows), dtype=np.float32)
        for number in np.unique(part_of):
            here = part_of == number
            scores[here] = kernel(self._tokens[number], query, local[here])
        return scores

    def _matrices(self, queries: TokenVectors) -> Iterator[F32]:
        check_tokens(queries.values, self._dim or queries.dim, NAME, "query")
        for start, stop in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
            yield np.asarray(queries.values[start:stop], dtype=np.float32)

    def _error(self, query: F32) -> float:
        """Error bound of the fast MaxSim scores, relative to the exact ones that decide the ranking."""
        coded = 0.0 if self._codec is None else maxsim_codes_error(query, self._codec, self._largest_norm)
        return max(coded, fast_error(query, self._largest_norm))
