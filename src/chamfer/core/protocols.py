"""The three contracts of the house: synchronous and batch-shaped.

Implementations satisfy them structurally; `tests/contracts` is their specification.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

from chamfer.core.types import F32, I64, Bool, Candidates, Document, Encoding, Query, VectorKind, Vectors

QueryVectors = TypeVar("QueryVectors", bound=Vectors, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """What an encoder gives, and the fingerprint under which its vectors may be compared.

    `dims` maps each kind to its dimension (for sparse: the vocabulary). Limits count tokens with specials.
    The fingerprint is SHA-256 over weights, tokenizer, pooling, prompts, projection and limits: all that moves
    a vector by more than rounding. Backend and dtype are not in it.
    """

    name: str
    dims: dict[VectorKind, int]
    query_tokens: int
    document_tokens: int
    fingerprint: str


class Encoder(Protocol):
    """Texts to vectors."""

    @property
    def spec(self) -> EncoderSpec: ...

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """The asked kinds for all queries from one forward pass; a query's bits do not depend on its batch."""
        ...

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """The asked kinds for all documents from one forward pass, in the given order."""
        ...


class Retriever(Protocol[QueryVectors]):
    """One channel of a collection: vectors to ranked rows. Search parameters belong to the object."""

    def __len__(self) -> int:
        """Rows, deleted ones included."""
        ...

    def search(self, queries: QueryVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows a query. `allowed` bool [N] is the one filter; None allows every live row.

        A query's result does not depend on the others in its batch.
        """
        ...

    def with_params(self, **params: Any) -> Self:
        """Another retriever over the same arrays; InvalidInput names an unknown parameter."""
        ...


class Rescorer(Protocol[QueryVectors]):
    """Exact scores of given rows from stored vectors."""

    def score(self, queries: QueryVectors, rows: I64) -> F32:
        """Scores f32 [Q, K] of rows i64 [Q, K]; padding rows (-1) score -inf."""
        ...


class Expandable(Protocol[QueryVectors]):
    """A retriever whose stored vectors feedback may read: its score is linear in the query's stored form.

    `search` takes queries in both forms. Where they are token vectors, `commonness(vectors f32 [n, D])` gives how well
    an average document matches each: f64 [n].
    """

    @property
    def stored_kind(self) -> VectorKind:
        """What `vectors` and `stored_form` give."""
        ...

    def vectors(self, rows: I64) -> Vectors:
        """The stored vectors of rows i64 [K], in order; nothing is encoded again."""
        ...

    def stored_form(self, queries: QueryVectors) -> Vectors:
        """The queries in the space of `vectors`."""
        ...


Pair = tuple[Query, Document]
ScoreKind = Literal["logit", "probability", "similarity", "list"]


class Reranker(Protocol):
    """A judge of (query, document) pairs.

    The fingerprint is SHA-256 over weights, tokenizer, template and activation: all that moves a score by more than
    rounding. `reads_images` says whether queries and documents may be or have images. `score_kind` is "logit" (any
    number, its sigmoid a probability), "probability" (0 to 1), "similarity" (as it is, not to be converted) or "list"
    (comparable within one list alone).
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def reads_images(self) -> bool: ...

    @property
    def score_kind(self) -> ScoreKind: ...

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """Scores f32 [n], higher is better, aligned with the documents; never sorted."""
        ...


class PairReranker(Reranker, Protocol):
    """A reranker that judges each pair by itself: many queries may share a batch, and scores be kept."""

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """Scores f32 [n], aligned; a pair's score does not depend on the others.

        NaN marks a pair for which the model gave no finite score. An input that cannot be read raises InvalidInput
        for all: whoever batches pairs of several callers finds out whose it was
        (chamfer.service.reranking.reranker_queue.judge).
        """
        ...
