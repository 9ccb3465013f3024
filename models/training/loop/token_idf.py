"""BM25's idf of token ids, counted over the documents that a job trains on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from chamfer.core.idf import bm25_idf
from chamfer.core.types import F32
from chamfer.models.backends.token_batches import Tokenizer

_NO_LIMIT = 1 << 30
_BLOCK = 1000


def token_idf(tokenizer: Tokenizer, documents: Iterable[str], vocabulary: int) -> F32:
    """The idf f32 [V] of every token id (chamfer.core.idf), document frequencies taken over these documents."""
    frequency = np.zeros(vocabulary, dtype=np.int64)
    texts = list(documents)
    for start in range(0, len(texts), _BLOCK):
        for ids in tokenizer(texts[start : start + _BLOCK], _NO_LIMIT).ids:
            frequency[np.unique(ids)] += 1
    return bm25_idf(frequency, len(texts))
