"""BM25 scores of every document for every query, from the lexical channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chamfer.core.types import Array, Document
from chamfer.indexing.families.inverted.bm25 import LexicalConfig, LexicalFamily
from chamfer.indexing.rows.segment_part import SegmentPart


def bm25(documents: Sequence[Document], queries: Sequence[str]) -> Tensor:
    """Scores f32 [Q, N]; 0 where query and document share no term."""
    family = LexicalFamily(LexicalConfig())
    retriever = family.open([SegmentPart(family.pack(documents, None), None, len(documents))])
    candidates = retriever.search(retriever.encode_queries(queries), len(documents))
    scores: Array = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for number in range(len(queries)):
        rows, values = candidates.of(number)
        scores[number, rows] = values
    return torch.from_numpy(scores)
