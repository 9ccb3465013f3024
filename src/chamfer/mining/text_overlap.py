"""Lexical similarity of texts: shared query terms, and Jaccard similarity of word shingles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chamfer.core.analysis import AnalysisConfig, Analyzer
from chamfer.core.types import Document

SHINGLE = 3
Shingles = frozenset[tuple[str, ...]]


def shingles(terms: Sequence[str], size: int = SHINGLE) -> Shingles:
    """All runs of `size` terms (Broder 1997). A shorter text is one shingle as a whole; an empty text has none."""
    if len(terms) < size:
        return frozenset([tuple(terms)]) if terms else frozenset()
    return frozenset(zip(*(terms[start:] for start in range(size)), strict=False))


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    """|a and b| / |a or b|; 0 for two empty sets."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


def overlap(query: frozenset[str], document: frozenset[str]) -> float:
    """Share of the query's terms that occur in the document; 0 for a query without terms."""
    return len(query & document) / len(query) if query else 0.0


class TermCache:
    """Terms and shingles of up to `max_documents` documents; when full, the cache is emptied.

    A document of 200 words takes about 40 KB. Not thread-safe.
    """

    def __init__(self, max_documents: int = 10_000) -> None:
        self._max_documents = max_documents
        self._analyse = Analyzer(AnalysisConfig())
        self._terms: dict[str, frozenset[str]] = {}
        self._shingles: dict[str, frozenset[int]] = {}

    def query(self, text: str) -> frozenset[str]:
        """The distinct terms of a text."""
        return frozenset(self._analyse(text))

    def terms(self, document: Document) -> frozenset[str]:
        """The distinct terms of a document."""
        self._read(document)
        return self._terms[document.doc_id]

    def shingles(self, document: Document) -> frozenset[int]:
        """Hashes of the document's shingles; comparing sets of tuples would hash every tuple again each time."""
        self._read(document)
        return self._shingles[document.doc_id]

    def _read(self, document: Document) -> None:
        if document.doc_id not in self._terms:
            if len(self._terms) >= self._max_documents:
                self._terms.clear()
                self._shingles.clear()
            terms = self._analyse(document.content)
            self._terms[document.doc_id] = frozenset(terms)
            self._shingles[document.doc_id] = frozenset(map(hash, shingles(terms)))
