"""Runs the models on a block: vectors from the encoder, and for family `cur` score columns from a reranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Encoding, VectorKind
from chamfer.indexing.building.block_merging import ReportProgress
from chamfer.indexing.building.recall_floor import sampled_queries
from chamfer.indexing.families.cur.anchor_scores import AnchorScorer, CostEstimate
from chamfer.indexing.families.cur.family import CurFamily
from chamfer.indexing.families.family import Family


class BlockEncoder:
    """Encodes blocks of documents for these families.

    Call `prepare` before the first block. Raises InvalidInput if the families need a model that is missing, or vectors
    that the encoder does not produce.
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        encoder: Encoder | None,
        reranker: Reranker | None,
    ) -> None:
        kinds = {family.kind for family in families.values() if family.kind is not None}
        self._cur = next((family for family in families.values() if isinstance(family, CurFamily)), None)
        self.kinds = kinds - {VectorKind.ANCHORS}
        self._encoder = encoder
        self._reranker = reranker
        self._scorer: AnchorScorer | None = None
        if self.kinds and encoder is None:
            raise InvalidInput(
                f"channels {list(families)} need {sorted(self.kinds)} vectors, and there is no encoder; set "
                "models.encoder or choose other channels (--channels)"
            )
        if encoder is not None and (missing := self.kinds - set(encoder.spec.dims)):
            raise InvalidInput(
                f"encoder {encoder.spec.name!r} produces {sorted(encoder.spec.dims)} vectors, and the channels also "
                f"need {sorted(missing)}; choose other channels (--channels) or another encoder (models.encoder)"
            )
        if self._cur is not None and reranker is None:
            raise InvalidInput("the cur channel needs a reranker; name one in build.parameters.cur.reranker")

    def prepare(
        self,
        first: Sequence[Document],
        queries: Sequence[str],
        folder: Path,
        total: int | None,
        report_progress: ReportProgress,
    ) -> CostEstimate | None:
        """Chooses the anchor queries of family `cur` and estimates the cost of scoring; None if nothing needs scoring.

        The queries are those of the family, else `queries`, else sampled from the `first` documents. The estimate is
        for `total` documents, or for the first ones if the total is not known. Scores are stored in `folder`.
        """
        if self._cur is None or self._reranker is None:
            return None
        n = self._cur.config.anchor_queries
        anchors = self._cur.queries or tuple(queries[:n]) or tuple(q.text for q in sampled_queries(first, n))
        if not anchors:
            return None  # no document contains a word, so there is nothing to score
        pairs = None if total is None else total * len(anchors)
        done = 0

        def on_pairs(count: int) -> None:
            nonlocal done
            done += count
            report_progress("score", done, pairs)

        self._scorer = AnchorScorer(self._reranker, anchors, folder, on_pairs=on_pairs)
        return self._scorer.estimate(first, len(first) if total is None else total)

    @property
    def identity(self) -> list[object]:
        """Everything that the encoding of a document depends on, for the digest of a block."""
        spec = None if self._encoder is None else (self._encoder.spec.name, self._encoder.spec.fingerprint)
        identity: list[object] = [sorted(self.kinds), spec]
        return identity if self._scorer is None else [*identity, self._scorer.identity]

    def __call__(self, documents: Sequence[Document]) -> Encoding | None:
        """The encoding of these documents; None if no channel needs a model."""
        encoding = None
        if self._encoder is not None and self.kinds:
            encoding = self._encoder.encode_documents(documents, self.kinds)
        if self._scorer is None:
            return encoding
        if encoding is None:
            zeros = np.zeros(len(documents), dtype=np.int32)
            encoding = Encoding(zeros, zeros.astype(bool))
        return replace(encoding, anchors=self._scorer.score(documents))
