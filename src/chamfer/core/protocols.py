"""The interfaces between packages: encoders, retrievers and rerankers. All are synchronous and work on batches.

Implementations satisfy them structurally; `tests/contracts` specifies their behaviour. The protocols marked
`runtime_checkable` are optional capabilities: the code that opens a channel or a reranker tests for them with
`isinstance`, once (chamfer.service.search.channels).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from numpy import float64
from numpy.typing import NDArray

from chamfer.core.types import F32, I64, Bool, Candidates, Document, Encoding, Query, VectorKind, Vectors

QueryVectors = TypeVar("QueryVectors", bound=Vectors, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """What an encoder produces, and the fingerprint that says whose vectors it can be compared with.

    `dims` maps each kind to its dimension (for sparse vectors: the vocabulary size). Limits count tokens, special
    tokens included. The fingerprint is SHA-256 over weights, tokenizer, pooling, prompts, projection and limits, that
    is, over everything that changes a vector by more than rounding. Backend and dtype are not part of it.
    """

    name: str
    dims: dict[VectorKind, int]
    query_tokens: int
    document_tokens: int
    fingerprint: str


class Encoder(Protocol):
    """Encodes queries and documents as vectors."""

    @property
    def spec(self) -> EncoderSpec: ...

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """The requested kinds for all queries from one forward pass; a query's bits do not depend on its batch."""
        ...

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """The requested kinds for all documents from one forward pass, in the given order."""
        ...


class Retriever(Protocol[QueryVectors]):
    """Ranks the rows of one channel by query vectors. Search parameters belong to the object."""

    def __len__(self) -> int:
        """The number of rows, deleted ones included."""
        ...

    def search(self, queries: QueryVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows of each query. `allowed` bool [N] is the filter; None allows every live row.

        The result of a query does not depend on the other queries in its batch.
        """
        ...

    def with_params(self, **params: Any) -> Self:
        """A retriever over the same arrays with other search parameters; InvalidInput names an unknown parameter."""
        ...


@runtime_checkable
class TextQueryEncoder(Protocol):
    """A retriever that encodes query texts itself, because its family reads text instead of an encoder's vectors."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, in the form that `Retriever.search` takes."""
        ...


@runtime_checkable
class Rescorer(Protocol[QueryVectors]):
    """Computes exact scores of given rows from stored vectors."""

    def score(self, queries: QueryVectors, rows: I64) -> F32:
        """Scores f32 [Q, K] of rows i64 [Q, K]; padding rows (-1) score -inf."""
        ...


@runtime_checkable
class Expandable(Protocol[QueryVectors]):
    """A retriever whose stored vectors feedback may read: its score is linear in the query's stored form.

    `Retriever.search` takes queries in both forms.
    """

    @property
    def stored_kind(self) -> VectorKind:
        """The kind of the vectors that `vectors` and `stored_form` return."""
        ...

    def vectors(self, rows: I64) -> Vectors:
        """The stored vectors of rows i64 [K], in order; nothing is encoded again."""
        ...

    def stored_form(self, queries: QueryVectors) -> Vectors:
        """The queries in the space of `vectors`."""
        ...


@runtime_checkable
class TokenExpandable(Expandable[QueryVectors], Protocol[QueryVectors]):
    """An Expandable of token vectors, which also knows how common a token vector is in the collection."""

    def commonness(self, vectors: F32) -> NDArray[float64]:
        """How well an average document matches each of the vectors f32 [n, D]: f64 [n]."""
        ...


Pair = tuple[Query, Document]
ScoreKind = Literal["logit", "probability", "similarity", "list"]


class Reranker(Protocol):
    """Scores documents for a query.

    The fingerprint is SHA-256 over weights, tokenizer, template and activation, that is, over everything that changes
    a score by more than rounding. `reads_images` says whether queries and documents may have images. `score_kind` is
    "logit" (unbounded; its sigmoid is a probability), "probability" (0 to 1), "similarity" (unbounded, with no
    conversion) or "list" (comparable only within one list).
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


@runtime_checkable
class PairReranker(Reranker, Protocol):
    """A reranker that scores each pair independently: pairs of many queries may share a batch, and scores be cached."""

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """Scores f32 [n], aligned; a pair's score does not depend on the others.

        NaN marks a pair for which the model gave no finite score. An input that cannot be read raises InvalidInput
        for the whole batch; the caller bisects the batch to find the offending pair
        (chamfer.service.search.pair_scoring.score_each).
        """
        ...
