"""BM25's inverse document frequency, for the lexical channel and for the networks that weight terms by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chamfer.core.types import F32


def bm25_idf(document_frequency: NDArray[np.integer[Any]], n_documents: int) -> F32:
    """ln(1 + (N - df + 0.5) / (df + 0.5)) f32 [V] of document frequencies [V] among N documents.

    The variant of Lucene, which is never negative (Robertson and Zaragoza 2009, equation 3.13, plus 1 inside the
    logarithm); it equals ln((N + 1) / (df + 0.5)). Computed in f64.
    """
    return np.log1p((n_documents - document_frequency + 0.5) / (document_frequency + 0.5)).astype(np.float32)
