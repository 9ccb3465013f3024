"""Family `cur`: for every document a column of cross-encoder scores, one for each anchor query.

The anchor queries and the fingerprint of the model that scored them form the codec of the collection. Anchor items are
chosen among the live documents when the collection is opened, by a rule that depends on the documents alone, so that
an index after additions, deletions and compaction equals one built from scratch (ADR 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.protocols import Retriever
from chamfer.core.types import (
    F32,
    I64,
    AnchorScores,
    Array,
    Bool,
    Candidates,
    DenseVectors,
    Document,
    Encoding,
    VectorKind,
)
from chamfer.indexing.families.dense import DenseConfig, DenseFamily
from chamfer.indexing.families.family import OnCpu
from chamfer.indexing.kernels.cur import QueryFit, fit_query, pick_diverse, shuffled
from chamfer.indexing.kernels.topk import check_depth
from chamfer.indexing.rows.merge import merge_rows
from chamfer.indexing.rows.segment_part import Codec, SegmentPart, allowed_rows, starts_of

_SAMPLE = 10_000


@dataclass(frozen=True, kw_only=True)
class CurConfig:
    """What is scored, how anchor items are chosen, and how queries are fitted.

    reranker        the name of the reranker whose scores are stored, as in models.rerankers
    anchor_queries  number of queries that every document is scored with
    anchor_items    number of documents that a query is scored with first, if no other channel seeds the search
    selection       of the anchor items; diverse: columns that span the largest volume; kmeans: those nearest to the
                    centres; random
    cutoff          singular values below this share of the largest are dropped (ANNCUR, ADACUR)
    ridge           ridge penalty of a fit, as a share of the largest squared singular value (AXN)
    storage         of the score columns; float16 changes a score of about 10 by less than 0.005
    seed            of the choice of anchor items
    """

    reranker: str = ""
    anchor_queries: int = 100
    anchor_items: int = 100
    selection: Literal["diverse", "kmeans", "random"] = "diverse"
    cutoff: float = 0.03
    ridge: float = 0.03
    storage: Literal["float32", "float16"] = "float32"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.anchor_queries < 1 or self.anchor_items < 1 or not 0 <= self.cutoff < 1 or not 0 <= self.ridge < 1:
            raise InvalidInput(
                f"cur anchor_queries {self.anchor_queries}, anchor_items {self.anchor_items}, cutoff {self.cutoff}, "
                f"ridge {self.ridge}; expected anchor_queries >= 1, anchor_items >= 1, 0 <= cutoff < 1, 0 <= ridge < 1"
            )


class CurFamily(OnCpu):
    """See chamfer.indexing.families.family.Family.

    Arrays: values f32 or f16 [N, k_q], largest_norm f64 [1], keys u64 [N].
    """

    name: ClassVar[str] = "cur"
    kind: ClassVar[VectorKind | None] = VectorKind.ANCHORS
    learns: ClassVar[bool] = True

    def __init__(self, config: CurConfig) -> None:
        self.config = config
        self.queries: tuple[str, ...] = ()
        self.fingerprint = ""
        self._columns = DenseFamily(DenseConfig(storage=config.storage))

    def learn(self, encoding: Encoding | None) -> Codec:
        """The anchor queries and the fingerprint of the reranker that scores them."""
        if encoding is None or encoding.anchors is None:
            return {}
        texts = [*encoding.anchors.queries, encoding.anchors.fingerprint]
        raw = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        return {"texts": np.concatenate(raw), "lengths": np.array([len(each) for each in raw], dtype=np.int64)}

    def with_codec(self, codec: Codec) -> Self:
        family = type(self)(self.config)
        if codec:
            ends = np.cumsum(codec["lengths"])
            raw = np.asarray(codec["texts"]).tobytes()
            texts = [raw[end - n : end].decode() for end, n in zip(ends, codec["lengths"], strict=True)]
            *queries, family.fingerprint = texts
            family.queries = tuple(queries)
        return family

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        anchors = None if encoding is None else encoding.anchors
        if encoding is None or anchors is None:
            raise InvalidInput("the cur channel needs a reranker and anchor queries (build.parameters.cur.reranker)")
        self._check(anchors)
        keys = [blake2b(d.doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest() for d in documents]
        columns = self._columns.pack(documents, replace(encoding, dense=anchors.values))
        return {**columns, "keys": np.frombuffer(b"".join(keys), dtype="<u8").astype(np.uint64)}

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return {**self._columns.merge(parts), **merge_rows(parts, ["keys"])}

    def open(self, parts: Sequence[SegmentPart]) -> CurRetriever:
        return CurRetriever(parts, self)

    def _check(self, anchors: AnchorScores) -> None:
        if anchors.fingerprint != self.fingerprint:
            raise Incompatible(
                f"the cur channel's columns come from the reranker {self.fingerprint[:12]}…, these scores from "
                f"{anchors.fingerprint[:12]}…; use the reranker that the collection was built with"
            )
        if anchors.queries != self.queries:
            raise Incompatible(
                f"{len(anchors.queries)} anchor queries were scored, which are not the {len(self.queries)} of the cur "
                "channel; score the documents with the anchor queries that the collection was built with"
            )


class CurRetriever(Retriever[DenseVectors]):
    """Score columns of all documents, which extrapolate a query's few exact scores to all documents.

    `search` is ANNCUR without its reranking; a query is represented by its scores with `anchor_items`.
    """

    def __init__(self, parts: Sequence[SegmentPart], family: CurFamily) -> None:
        self._parts = parts
        self._columns = DenseFamily(DenseConfig(storage=family.config.storage)).open(parts)
        self.config = family.config
        self.queries = family.queries
        self.fingerprint = family.fingerprint
        self.anchor_items = self._choose()

    def __len__(self) -> int:
        return len(self._columns)

    def search(self, queries: DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k rows of highest estimate for queries f32 [Q, anchor items]; scores omit the query's constant bias."""
        check_depth(k)
        allowed_rows(self._parts, allowed)  # raises for a filter of the wrong length, even with nothing to search
        if not len(self.anchor_items):
            empty = np.full((len(queries), 0), -1, dtype=np.int64)
            return Candidates(empty, empty.astype(np.float32))
        if queries.dim != len(self.anchor_items):
            raise InvalidInput(f"a query has {queries.dim} scores, expected one for each of {len(self.anchor_items)}")
        table = self.columns(self.anchor_items)
        fits = [fit_query(table, scores, cutoff=self.config.cutoff) for scores in queries.values]
        return self._columns.search(
            DenseVectors(np.stack([fit.weights for fit in fits]).astype(np.float32)), k, allowed
        )

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"a search by estimates has no parameters, got {sorted(params)}")
        return self

    def columns(self, rows: I64) -> F32:
        """Score columns f32 [K, k_q] of rows."""
        return np.asarray(self._columns.vectors(rows).values, dtype=np.float32)

    def estimates(self, fit: QueryFit, guess: F32 | None = None) -> F32:
        """Estimated scores f32 [N] of every row, deleted ones included, from a fit to exact scores."""
        weights = fit.weights.astype(np.float32)
        scores = self._columns.inner_products(weights) + np.float32(fit.bias)
        return np.asarray(scores if guess is None else scores + np.float32(fit.slope) * guess, dtype=np.float32)

    def usable(self, allowed: Bool | None) -> Bool:
        """Live and allowed rows, bool [N]."""
        mask = allowed_rows(self._parts, allowed)
        return np.ones(len(self), dtype=bool) if mask is None else mask

    def _choose(self) -> I64:
        starts = starts_of(self._parts)
        live = [starts[i] + part.live_rows() for i, part in enumerate(self._parts)]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *live])
        if not len(rows):
            return rows
        keys = np.concatenate([np.asarray(part.arrays["keys"])[part.live_rows()] for part in self._parts])
        rows = rows[shuffled(keys, self.config.seed)[:_SAMPLE]]
        n = min(self.config.anchor_items, len(rows))
        if self.config.selection == "random":
            return rows[:n]
        table = self.columns(rows)
        positions = (
            pick_diverse(table, n) if self.config.selection == "diverse" else _central(table, n, self.config.seed)
        )
        # Columns may span fewer dimensions than n; the remaining items are random.
        rest = np.setdiff1d(np.arange(len(rows)), positions)
        return np.asarray(rows[np.concatenate([positions, rest[: n - len(positions)]])], dtype=np.int64)


def _central(table: F32, n: int, seed: int) -> I64:
    """Positions of the rows nearest to n k-means centres, without repeats."""
    import faiss

    clusters = faiss.Kmeans(table.shape[1], n, niter=10, seed=seed, min_points_per_centroid=1, verbose=False)
    clusters.train(np.ascontiguousarray(table))
    nearest = clusters.index.search(table, 1)
    order = np.lexsort((np.arange(len(table)), nearest[0][:, 0], nearest[1][:, 0]))
    _, first = np.unique(nearest[1][order, 0], return_index=True)
    return np.asarray(order[first], dtype=np.int64)
