"""The terms of learned sparse vectors: stems of words, as in the lexical channel, each with its place in the text.

Word pieces cut apart the words that queries hang on: BM25 over them is up to 5 points of nDCG@10 below BM25 over stems
(docs/experiments.md), which no training here made good. So a term is a stem. Known stems have numbers of their own,
all others share `buckets` numbers by hash: a word that no training text held can still be asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from chamfer.core.analysis import AnalysisConfig, Analyzer, term_hashes
from chamfer.core.types import F32, I64
from chamfer.models.backends.token_batches import Tokenizer

_FORMS = 6  # of a stem, at most


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """language of the stems and stop words; buckets for unknown stems.

    k1, b and length (stems of a usual text; fixed, so that a text's vector depends on no other) are BM25's constants.
    """

    language: str = "english"
    buckets: int = 8192
    k1: float = 1.2
    b: float = 0.75
    length: float = 80.0


@dataclass(frozen=True, slots=True)
class PlacedTerms:
    """terms i64 [n] of a text, ascending; saturation f32 [n], BM25's of their counts; at i64 [L]: which of them the
    token begins (a place in `terms`), -1 for none."""

    terms: I64
    saturation: F32
    at: I64

    @property
    def unread(self) -> I64:
        """Places of the terms that stand beyond the tokens read."""
        return np.setdiff1d(np.arange(len(self.terms)), self.at)


class Terms:
    """Texts to numbered terms. names i64 [V]: hashes of the known stems, ascending; their places are their numbers."""

    def __init__(self, names: I64, config: TermConfig) -> None:
        self.names = names
        self._config = config
        self._analyzer = Analyzer(AnalysisConfig(language=config.language))
        self._lock = Lock()  # the stemmer and its cache are not for two threads

    def __len__(self) -> int:
        return len(self.names) + self._config.buckets

    def numbers(self, stems: Sequence[str]) -> I64:
        """i64 [n] in 0..len(self)-1."""
        hashes = term_hashes(stems)
        own = hashes.view(np.int64)
        shared = len(self.names) + (hashes % np.uint64(self._config.buckets)).astype(np.int64)
        if not len(self.names):
            return shared
        places = np.searchsorted(self.names, own).clip(max=len(self.names) - 1)
        return np.where(self.names[places] == own, places, shared)

    def query(self, text: str) -> tuple[I64, F32]:
        """Terms i64 [n], ascending, and how often each stands in the query f32 [n]."""
        with self._lock:
            stems = self._analyzer(text)
        terms, counts = np.unique(self.numbers(stems), return_counts=True)
        return terms, counts.astype(np.float32)

    def document(self, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> PlacedTerms:
        """The terms of the whole text, and which of them begin at its tokens `ids` (cut, with those that frame it)."""
        whole, starts = tokenizer.starts(text.lower())
        with self._lock:
            placed = self._analyzer.placed(text)
        terms, inverse, counts = np.unique(
            self.numbers([stem for stem, _ in placed]), return_inverse=True, return_counts=True
        )
        config, tf = self._config, counts.astype(np.float32)
        norm = config.k1 * (1 - config.b + config.b * len(placed) / config.length)
        at = np.full(len(ids), -1, dtype=np.int64)
        begins = {start: term for (_, start), term in zip(placed, inverse.tolist(), strict=True)}
        for place, (own, read, start) in enumerate(zip(ids, whole, starts, strict=False)):
            if own == read and start >= 0:  # lower-casing may shift what follows a rare letter; then nothing is placed
                at[place] = begins.get(start, -1)
        return PlacedTerms(terms, (tf * (config.k1 + 1) / (tf + norm)).astype(np.float32), at)


def known_terms(texts: Iterable[str], language: str, least: int) -> tuple[I64, F32, list[dict[str, int]]]:
    """Stems in at least that many texts: names i64 [V] ascending, idf f32 [V + 1], and each one's commonest words with
    how often they stand there.

    idf = ln((N + 1) / (n + 0.5)) of n texts among N; the last is that of a stem in none.
    """
    analyzer = Analyzer(AnalysisConfig(language=language))
    frequency: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {}
    total = 0
    for text in texts:
        placed = analyzer.words(text)
        total += 1
        frequency.update({stem for stem, _ in placed})
        for stem, word in placed:
            words.setdefault(stem, Counter())[word] += 1
    known = [stem for stem, n in frequency.items() if n >= least]
    names = term_hashes(known).view(np.int64)
    order = np.argsort(names)
    n = np.array([frequency[known[place]] for place in order] + [0])
    idf = np.log((total + 1) / (n + 0.5)).astype(np.float32)
    return names[order], idf, [dict(words[known[place]].most_common(_FORMS)) for place in order]
