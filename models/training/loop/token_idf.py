"""How much the terms of a vocabulary say, counted over the texts that a job trains on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from chamfer.core.types import F32
from chamfer.models.backends.token_batches import Tokenizer


def idf(tokenizer: Tokenizer, documents: Iterable[str], size: int) -> F32:
    """ln(1 + (N - df + 0.5) / (df + 0.5)) = ln((N+1) / (df+0.5)) of every term f32 [V], df over these documents."""
    frequency = np.zeros(size, dtype=np.int64)
    total = 0
    texts = list(documents)
    for start in range(0, len(texts), 1000):
        for ids in tokenizer(texts[start : start + 1000], 1 << 30).ids:
            frequency[np.unique(ids)] += 1
            total += 1
    return np.log((total + 1) / (frequency + 0.5)).astype(np.float32)
