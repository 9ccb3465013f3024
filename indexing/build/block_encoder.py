"""What a block needs from models: vectors from the encoder, and for family `cur` score columns from a reranker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Encoding, VectorKind
from chamfer.indexing.build.recall_floor import made_up_queries
from chamfer.indexing.families.cur.anchor_scores import AnchorScorer, CostEstimate
from chamfer.indexing.families.cur.family import CurFamily
from chamfer.indexing.families.family import Family

Say = Callable[[str, int, int | None], None]


class BlockEncoder:
    """Encodes blocks of documents for these families. Raises InvalidInput where a model is missing or cannot give it.

    `begin` comes first: without anchor queries of the user's, or the collection's own, they are made up from the first
    documents.
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
            raise InvalidInput(f"channels {list(families)} need {sorted(self.kinds)} vectors, and there is no encoder")
        if encoder is not None and (lacking := self.kinds - set(encoder.spec.dims)):
            raise InvalidInput(
                f"encoder {encoder.spec.name!r} gives {sorted(encoder.spec.dims)}, the channels need {sorted(lacking)} "
                "too; choose other channels (--channels) or another encoder"
            )
        if self._cur is not None and reranker is None:
            raise InvalidInput("the cur channel needs a reranker; name one in build.parameters.cur.reranker")

    def begin(
        self, first: Sequence[Document], queries: Sequence[str], folder: Path, total: int | None, say: Say
    ) -> CostEstimate | None:
        """What scoring will cost, if there is any: for `total` documents, or the first ones where it is not known."""
        if self._cur is None or self._reranker is None:
            return None
        n = self._cur.config.anchor_queries
        asked = self._cur.queries or tuple(queries[:n]) or tuple(q.text for q in made_up_queries(first, n))
        if not asked:
            return None  # no document has a word: there is nothing to score either
        pairs = None if total is None else total * len(asked)
        done = 0

        def on_pairs(count: int) -> None:
            nonlocal done
            done += count
            say("score", done, pairs)

        self._scorer = AnchorScorer(self._reranker, asked, folder, on_pairs=on_pairs)
        return self._scorer.estimate(first, len(first) if total is None else total)

    @property
    def identity(self) -> list[Any]:
        """All that moves what is encoded, for the digest of a block."""
        spec = None if self._encoder is None else (self._encoder.spec.name, self._encoder.spec.fingerprint)
        known: list[Any] = [sorted(self.kinds), spec]
        return known if self._scorer is None else [*known, self._scorer.identity]

    def __call__(self, documents: Sequence[Document]) -> Encoding | None:
        """The encoding of these documents; None where no channel asks a model."""
        encoding = None
        if self._encoder is not None and self.kinds:
            encoding = self._encoder.encode_documents(documents, self.kinds)
        if self._scorer is None:
            return encoding
        if encoding is None:
            nothing = np.zeros(len(documents), dtype=np.int32)
            encoding = Encoding(nothing, nothing.astype(bool))
        return replace(encoding, anchors=self._scorer.score(documents))
