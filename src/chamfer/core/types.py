"""Records and vector containers shared by all packages.

Shapes: N rows, Q queries, T tokens of all rows concatenated, D dimensions, K candidates, Z non-zeros, V terms.
All records are frozen and all arrays C-contiguous; each is validated once, on construction (`__post_init__`).
Ragged data is stored as flat values plus offsets. The API identifies a document by a string `doc_id`, the indexes by
an integer `row`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import InvalidInput

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
Array = NDArray[Any]


class VectorKind(StrEnum):
    """Kinds of vectors that an encoder can produce for a text."""

    DENSE = "dense"
    TOKENS = "tokens"
    SPARSE = "sparse"
    ANCHORS = "anchors"  # a reranker's scores with a fixed set of queries, stored by family `cur`


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a corpus. `doc_id` is unique in a collection; the text may be empty."""

    doc_id: str
    text: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    image: Path | bytes | None = None

    @property
    def content(self) -> str:
        """Title and text in one string, the input of text encoders and BM25 (BEIR's convention)."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True, slots=True)
class Query:
    """A query with a text, an image, or both."""

    query_id: str
    text: str = ""
    image: Path | bytes | None = None

    def __post_init__(self) -> None:
        if not self.text.strip() and self.image is None:
            raise InvalidInput(f"query {self.query_id!r} has neither text nor image, expected at least one of them")


@dataclass(frozen=True, slots=True)
class DenseVectors:
    """One vector per row: values f32 or f16 [N, D], finite."""

    values: Array

    def __post_init__(self) -> None:
        _expect(self.values.ndim == 2, f"dense values have shape {self.values.shape}, expected [N, D]")
        _expect_dtype("dense values", self.values, (np.float32, np.float16))
        _expect(self.values.flags.c_contiguous, "dense values are not C-contiguous")

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    def take(self, rows: Sequence[int] | Array) -> Self:
        """The given rows, in the given order."""
        return type(self)(np.ascontiguousarray(self.values[np.asarray(rows, dtype=np.int64)]))

    @classmethod
    def concatenate(cls, parts: Sequence[DenseVectors]) -> Self:
        return cls(np.concatenate([part.values for part in parts]))


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """A matrix of vectors per row: values f32, f16 or i8 [T, D], offsets i64 [N+1] ascending from 0 to T.

    The vectors of row i are values[offsets[i]:offsets[i+1]]; a row may be empty. weights f32 [T] > 0 weight the vectors
    in token pooling (chamfer.models.networks.token_pooling); None weights all equally. No index stores them.
    """

    values: Array
    offsets: I64
    weights: F32 | None = None

    def __post_init__(self) -> None:
        _expect(self.values.ndim == 2, f"token values have shape {self.values.shape}, expected [T, D]")
        _expect_dtype("token values", self.values, (np.float32, np.float16, np.int8))
        _expect(self.values.flags.c_contiguous, "token values are not C-contiguous")
        _expect_offsets("token", self.offsets, self.values.shape[0])
        if self.weights is not None:
            _expect_dtype("token weights", self.weights, (np.float32,))
            _expect(self.weights.shape == self.values.shape[:1], "token weights and values differ in length")
            _expect(bool(np.all(self.weights > 0)), "a token weight is zero, negative or NaN")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    def take(self, rows: Sequence[int] | Array) -> Self:
        """The given rows, in the given order."""
        index, offsets = ragged_index(self.offsets, np.asarray(rows, dtype=np.int64))
        weights = None if self.weights is None else self.weights[index]
        return type(self)(np.ascontiguousarray(self.values[index]), offsets, weights)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenVectors]) -> Self:
        """All rows, in order; weights are kept only if every part has them."""
        weights = [part.weights for part in parts if part.weights is not None]
        return cls(
            np.concatenate([part.values for part in parts]),
            join_offsets([part.offsets for part in parts]),
            np.concatenate(weights) if len(weights) == len(parts) else None,
        )


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """Weighted terms per row: weights f32 [Z] > 0, terms i32 [Z] ascending within a row, offsets i64 [N+1]."""

    weights: F32
    terms: I32
    offsets: I64
    vocabulary: int

    def __post_init__(self) -> None:
        _expect_dtype("sparse weights", self.weights, (np.float32,))
        _expect_dtype("sparse terms", self.terms, (np.int32,))
        _expect(self.weights.shape == self.terms.shape, "sparse weights and terms differ in length")
        _expect_offsets("sparse", self.offsets, len(self.terms))
        if len(self.terms):
            _expect(bool(np.all(self.weights > 0)), "a sparse weight is zero, negative or NaN")
            _expect(self.terms.min() >= 0 and self.terms.max() < self.vocabulary, "a sparse term is outside 0..V-1")
            falls = np.flatnonzero(np.diff(self.terms) <= 0) + 1
            begins = np.zeros(len(self.terms) + 1, dtype=bool)
            begins[self.offsets] = True
            _expect(bool(begins[falls].all()), "sparse terms do not ascend within a row")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Sequence[int] | Array) -> Self:
        """The given rows, in the given order."""
        index, offsets = ragged_index(self.offsets, np.asarray(rows, dtype=np.int64))
        return type(self)(self.weights[index], self.terms[index], offsets, self.vocabulary)

    @classmethod
    def concatenate(cls, parts: Sequence[SparseVectors]) -> Self:
        return cls(
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.terms for part in parts]),
            join_offsets([part.offsets for part in parts]),
            max(part.vocabulary for part in parts),
        )


Vectors = DenseVectors | TokenVectors | SparseVectors


@dataclass(frozen=True, slots=True)
class AnchorScores:
    """Scores f32 [N, k_q] of N documents with k_q anchor queries, the queries, and the reranker's fingerprint."""

    values: DenseVectors
    queries: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        _expect(
            self.values.dim == len(self.queries),
            f"found {len(self.queries)} anchor queries for {self.values.dim} columns of scores, expected one for each",
        )

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def concatenate(cls, parts: Sequence[AnchorScores]) -> Self:
        """The documents of all parts, which have the same queries and reranker."""
        values = DenseVectors.concatenate([part.values for part in parts])
        return cls(values, parts[0].queries, parts[0].fingerprint)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Result of encoding N texts: vectors of the requested kinds, and the lengths of the texts.

    n_tokens i32 [N] is the number of tokens before truncation, special tokens included;
    truncated bool [N] is true for texts whose end was cut off.
    """

    n_tokens: I32
    truncated: Bool
    dense: DenseVectors | None = None
    tokens: TokenVectors | None = None
    sparse: SparseVectors | None = None
    anchors: AnchorScores | None = None

    def __len__(self) -> int:
        return len(self.n_tokens)

    def vectors(self, kind: VectorKind) -> Vectors:
        """The vectors of one kind; InvalidInput if that kind was not requested."""
        vectors: Vectors | None
        if kind is VectorKind.ANCHORS:
            vectors = None if self.anchors is None else self.anchors.values
        else:
            vectors = getattr(self, kind.value)
        if vectors is None:
            raise InvalidInput(f"{kind.value} vectors were not encoded; pass the kind to the encoder")
        return vectors

    @classmethod
    def concatenate(cls, parts: Sequence[Encoding]) -> Self:
        """The texts of all parts, in order; at least one part, all of the same kinds."""
        dense = [part.dense for part in parts if part.dense is not None]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        sparse = [part.sparse for part in parts if part.sparse is not None]
        anchors = [part.anchors for part in parts if part.anchors is not None]
        return cls(
            np.concatenate([part.n_tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            dense=DenseVectors.concatenate(dense) if dense else None,
            tokens=TokenVectors.concatenate(tokens) if tokens else None,
            sparse=SparseVectors.concatenate(sparse) if sparse else None,
            anchors=AnchorScores.concatenate(anchors) if anchors else None,
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Ranked rows of Q queries: rows i64 [Q, K], scores f32 [Q, K].

    Scores are descending, ties ordered by ascending row; padding at the end has row -1 and score -inf.
    """

    rows: I64
    scores: F32

    def __post_init__(self) -> None:
        _expect(
            self.rows.ndim == 2 and self.rows.shape == self.scores.shape,
            f"candidate rows {self.rows.shape} and scores {self.scores.shape} differ, expected both [Q, K]",
        )
        _expect_dtype("candidate rows", self.rows, (np.int64,))
        _expect_dtype("candidate scores", self.scores, (np.float32,))

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def depth(self) -> int:
        return int(self.rows.shape[1])

    def of(self, query: int) -> tuple[I64, F32]:
        """(rows i64 [n], scores f32 [n]) of one query, padding removed."""
        n = int(np.count_nonzero(self.rows[query] >= 0))
        return self.rows[query, :n], self.scores[query, :n]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; rank counts from 1. explanation has the scores of each stage if the request set `explain`."""

    doc_id: str
    rank: int
    score: float
    document: Document
    explanation: Mapping[str, Any] | None = None


def ragged_index(offsets: I64, rows: I64) -> tuple[I64, I64]:
    """(flat positions of the given rows in order, offsets i64 [len(rows)+1] of the result)."""
    lengths = offsets[rows + 1] - offsets[rows]
    new_offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=new_offsets[1:])
    starts = np.repeat(offsets[rows] - new_offsets[:-1], lengths)
    return starts + np.arange(new_offsets[-1], dtype=np.int64), new_offsets


def join_offsets(parts: Sequence[I64]) -> I64:
    """Offsets of the concatenation of ragged arrays."""
    lengths = np.concatenate([np.diff(part) for part in parts]) if parts else np.zeros(0, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidInput(message)


def _expect_dtype(name: str, array: Array, allowed: tuple[type[np.generic], ...]) -> None:
    if array.dtype not in allowed:
        names = " or ".join(np.dtype(a).name for a in allowed)
        raise InvalidInput(f"{name} are {array.dtype}, expected {names}")


def _expect_offsets(name: str, offsets: I64, total: int) -> None:
    _expect_dtype(f"{name} offsets", offsets, (np.int64,))
    _expect(offsets.ndim == 1 and len(offsets) >= 1, f"{name} offsets have shape {offsets.shape}, expected [N+1]")
    _expect(int(offsets[0]) == 0, f"{name} offsets start at {offsets[0]}, expected 0")
    _expect(int(offsets[-1]) == total, f"{name} offsets end at {offsets[-1]}, expected {total}")
    _expect(bool(np.all(np.diff(offsets) >= 0)), f"{name} offsets descend")
