"""BM25's idf: one formula for the lexical channel, for token weights and for stem vocabularies."""

from __future__ import annotations

import numpy as np
import pytest

from chamfer.core.idf import bm25_idf


@pytest.mark.parametrize("n_documents", [1, 5, 1000, 44_949])
def test_both_ways_to_write_the_formula_have_the_same_bits(n_documents: int) -> None:
    frequency = np.arange(n_documents + 1)
    idf = bm25_idf(frequency, n_documents)
    assert idf.dtype == np.float32
    np.testing.assert_array_equal(idf, np.log((n_documents + 1) / (frequency + 0.5)).astype(np.float32))


def test_the_idf_of_a_term_in_every_document_is_small_and_not_negative() -> None:
    idf = bm25_idf(np.array([0, 1, 9, 10]), 10)
    assert (np.diff(idf) < 0).all()
    assert 0 < idf[-1] < 0.1
