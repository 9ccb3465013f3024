"""Cross-encoders of sentence-transformers as rerankers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chamfer.errors import Internal, InvalidInput
from chamfer.types import F32, Document, Query
from models.backbone import DeviceConfig
from models.batches import clean, length_groups
from models.hub import fingerprint, open_model


class CrossEncoderReranker:
    """Scores (query, document) pairs with one model. Made by `load_cross_encoder`."""

    def __init__(self, model: Any, name: str, batch_tokens: int) -> None:
        self.name = name
        self.fingerprint = fingerprint(model)
        self._model = model
        self._batch_tokens = batch_tokens

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """Scores f32 [n] through the model's own activation, aligned with the documents.

        Pairs are batched by length under the token budget. Raises Internal if the model gives NaN.
        """
        if query.image is not None:
            raise InvalidInput(f"reranker {self.name} reads text only, the query has an image")
        pairs = [(clean(query.text), clean(document.content)) for document in documents]
        scores = np.zeros(len(pairs), dtype=np.float32)
        if not pairs:
            return scores
        limit = int(self._model.max_length or 512)
        encoded = self._model.tokenizer([p[0] for p in pairs], [p[1] for p in pairs], truncation=False, verbose=False)
        lengths = [min(len(ids), limit) for ids in encoded["input_ids"]]
        for _, rows in length_groups(lengths, limit=limit, budget=self._batch_tokens):
            out = self._model.predict([pairs[row] for row in rows], batch_size=len(rows), show_progress_bar=False)
            scores[rows] = np.asarray(out, dtype=np.float32).reshape(len(rows))
        if not np.isfinite(scores).all():
            raise Internal(f"reranker {self.name} gave a score that is not finite")
        return scores


def load_cross_encoder(name: str, config: DeviceConfig) -> CrossEncoderReranker:
    """The reranker of this hub name or local path; models with more than one label are refused."""
    model = open_model("CrossEncoder", name, config)
    if (labels := int(model.num_labels)) != 1:
        raise InvalidInput(f"{name!r} gives {labels} labels a pair, expected a reranker with one")
    return CrossEncoderReranker(model, name, config.batch_tokens)
