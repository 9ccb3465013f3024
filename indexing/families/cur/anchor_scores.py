"""Computes the score matrix of CUR, every document with every anchor query, in pieces that survive a killed process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chamfer.core.artifact import digest_of, find_artifact, open_artifact, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import PairReranker, Reranker
from chamfer.core.types import F32, AnchorScores, DenseVectors, Document, Query

_KIND = "anchor scores"
_PIECE_PAIRS = 1024
_CALL_PAIRS = 256  # enough for full batches, and few enough for the timeout of a remote reranker
_SAMPLE_DOCUMENTS = 24
_SAMPLE_QUERIES = 8


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The expected cost of a score matrix, from the speed measured on a few pairs."""

    pairs: int
    pairs_per_second: float

    @property
    def seconds(self) -> float:
        return self.pairs / self.pairs_per_second

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        spent = f"{hours:.0f} h {rest / 60:.0f} min" if hours else f"{rest / 60:.1f} min"
        return f"{self.pairs:,} pairs at {self.pairs_per_second:,.1f} a second: about {spent}"


class AnchorScorer:
    """Scores documents with the anchor queries. Finished pieces are stored in `folder` and reused.

    A piece holds as many documents as make about a thousand pairs. Its name is a digest of its documents, the queries
    and the reranker, so that only changed parts of a corpus are scored again. Raises InvalidInput without queries.
    """

    def __init__(
        self,
        reranker: Reranker,
        queries: Sequence[str],
        folder: Path,
        *,
        on_pairs: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not queries:
            raise InvalidInput("there are no anchor queries, a score matrix needs at least one (anchor_queries)")
        self.queries = tuple(queries)
        self._queries = [Query(f"anchor {number}", text) for number, text in enumerate(queries)]
        self._reranker = reranker
        self._pair_reranker = reranker if isinstance(reranker, PairReranker) else None
        self._folder = folder
        self._on_pairs = on_pairs
        self._clock = clock
        self._piece_documents = max(1, _PIECE_PAIRS // len(queries))

    @property
    def identity(self) -> str:
        """Digest of the queries and the reranker."""
        return digest_of(self.queries, self._reranker.fingerprint)

    def score(self, documents: Sequence[Document]) -> AnchorScores:
        """The columns of these documents, f32 [N, k_q]."""
        scores = np.empty((len(documents), len(self.queries)), dtype=np.float32)
        for start in range(0, len(documents), self._piece_documents):
            piece = documents[start : start + self._piece_documents]
            scores[start : start + len(piece)] = self._piece(piece)
            if self._on_pairs is not None:
                self._on_pairs(len(piece) * len(self.queries))
        return AnchorScores(DenseVectors(scores), self.queries, self._reranker.fingerprint)

    def estimate(self, documents: Sequence[Document], n_documents: int) -> CostEstimate:
        """Times a sample of the pairs of `documents`, after one uncounted call, for a corpus of n_documents.

        The sample follows the distribution of document lengths, since a pair's time depends on its length, and is
        scored in calls of as many documents as a piece has.
        """
        if not documents:
            return CostEstimate(0, 1.0)
        sample = _of_all_lengths(documents, _SAMPLE_DOCUMENTS)
        queries = [self._queries[i] for i in np.linspace(0, len(self._queries) - 1, _SAMPLE_QUERIES).astype(int)]
        self._scores(queries[:1], sample)
        begin = self._clock()
        for start in range(0, len(sample), self._piece_documents):
            self._scores(queries, sample[start : start + self._piece_documents])
        rate = len(sample) * len(queries) / max(self._clock() - begin, 1e-9)
        return CostEstimate(n_documents * len(self.queries), rate)

    def _piece(self, documents: Sequence[Document]) -> F32:
        content = [[d.doc_id, d.title, d.text] for d in documents]
        path = self._folder / f"pairs-{digest_of(content, self.queries, self._reranker.fingerprint)[:40]}"
        if find_artifact(path, _KIND) is None:
            scores = self._scores(self._queries, documents)
            with write_artifact(path, _KIND, {"documents": len(documents)}) as writer:
                writer.add_array("scores", np.ascontiguousarray(scores))
        return np.asarray(open_artifact(path, _KIND).array("scores"), dtype=np.float32)

    def _scores(self, queries: Sequence[Query], documents: Sequence[Document]) -> F32:
        """Scores f32 [documents, queries]; a PairReranker scores many pairs per call, so that its batches are full."""
        shape = len(documents), len(queries)
        if self._pair_reranker is not None:
            pairs = [(query, document) for document in documents for query in queries]
            calls = [pairs[start : start + _CALL_PAIRS] for start in range(0, len(pairs), _CALL_PAIRS)]
            scores = np.concatenate([np.asarray(self._pair_reranker.score_pairs(c), dtype=np.float32) for c in calls])
        else:
            columns = [np.asarray(self._reranker.score(query, documents), dtype=np.float32) for query in queries]
            scores = np.stack(columns, axis=1)
        if scores.size != shape[0] * shape[1]:
            raise InvalidInput(f"the reranker gave {scores.size} scores for {shape[0] * shape[1]} pairs")
        scores = scores.reshape(shape)
        bad = np.argwhere(~np.isfinite(scores))
        if len(bad):
            row, column = bad[0]
            raise InvalidInput(
                f"the reranker gave the score {scores[row, column]} for document {documents[row].doc_id!r} with the "
                f"anchor query {queries[column].text[:80]!r}; leave the document out or choose another "
                "reranker (build.parameters.cur.reranker)"
            )
        return scores


def _of_all_lengths(documents: Sequence[Document], n: int) -> list[Document]:
    """At most n of the documents, one from each of n equal groups by length, in their original order."""
    by_length = sorted(range(len(documents)), key=lambda row: len(documents[row].content))
    n = min(n, len(documents))
    return [
        documents[row] for row in sorted(by_length[(2 * part + 1) * len(documents) // (2 * n)] for part in range(n))
    ]
