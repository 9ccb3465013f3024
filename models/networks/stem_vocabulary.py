"""The terms of learned sparse vectors: stems of words, as in the lexical channel, with their positions in the text.

Word pieces split the words on which queries depend: BM25 over word pieces is up to 5 points of nDCG@10 below BM25 over
stems (docs/experiments.md), and no training tried here closed the gap. Each stem of the vocabulary has its own
number; all others share `buckets` numbers by hash, so that words that no training text contained can still be searched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from chamfer.core.analysis import AnalysisConfig, Analyzer, term_hashes
from chamfer.core.idf import bm25_idf
from chamfer.core.types import F32, I64
from chamfer.models.backends.token_batches import Tokenizer

_MAX_FORMS = 6  # words kept per stem


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """How texts become terms.

    language    of the stemmer and the stop words
    buckets     numbers shared by the stems outside the vocabulary
    k1, b       BM25's parameters
    length      the average number of stems of a text in BM25; fixed, so that a text's vector depends on no other text
    """

    language: str = "english"
    buckets: int = 8192
    k1: float = 1.2
    b: float = 0.75
    length: float = 80.0


@dataclass(frozen=True, slots=True)
class PlacedTerms:
    """The terms of one text.

    terms i64 [n], ascending; saturation f32 [n], BM25's saturation of their counts; at i64 [L], for each token the
    index into `terms` of the term that begins there, -1 for none.
    """

    terms: I64
    saturation: F32
    at: I64

    @property
    def truncated(self) -> I64:
        """Indices into `terms` of those that occur only beyond the token limit."""
        return np.setdiff1d(np.arange(len(self.terms)), self.at)


class Terms:
    """Texts to term numbers. names i64 [V] are the ascending hashes of the vocabulary's stems; an index is a number."""

    def __init__(self, names: I64, config: TermConfig) -> None:
        self.names = names
        self._config = config
        self._analyzer = Analyzer(AnalysisConfig(language=config.language))
        self._lock = Lock()  # the stemmer and its cache are not thread-safe

    def __len__(self) -> int:
        return len(self.names) + self._config.buckets

    def numbers(self, stems: Sequence[str]) -> I64:
        """Term numbers i64 [n] in 0..len(self)-1."""
        hashes = term_hashes(stems)
        signed = hashes.view(np.int64)
        shared = len(self.names) + (hashes % np.uint64(self._config.buckets)).astype(np.int64)
        if not len(self.names):
            return shared
        numbers = np.searchsorted(self.names, signed).clip(max=len(self.names) - 1)
        return np.where(self.names[numbers] == signed, numbers, shared)

    def query(self, text: str) -> tuple[I64, F32]:
        """Terms i64 [n], ascending, and their counts f32 [n] in the query."""
        with self._lock:
            stems = self._analyzer(text)
        terms, counts = np.unique(self.numbers(stems), return_counts=True)
        return terms, counts.astype(np.float32)

    def document(self, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> PlacedTerms:
        """The terms of the whole text, placed at its tokens `ids` (truncated, special ones included)."""
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
        for token, (token_id, whole_id, start) in enumerate(zip(ids, whole, starts, strict=False)):
            # Lower-casing a rare letter may shift offsets: such tokens are left without a term.
            if token_id == whole_id and start >= 0:
                at[token] = begins.get(start, -1)
        return PlacedTerms(terms, (tf * (config.k1 + 1) / (tf + norm)).astype(np.float32), at)


def build_vocabulary(texts: Iterable[str], language: str, min_df: int) -> tuple[I64, F32, list[dict[str, int]]]:
    """The stems that occur in at least `min_df` texts: (names, idf, words).

    names i64 [V], ascending; idf f32 [V + 1], whose last entry is that of a stem in no text; words[t] are the commonest
    words of stem t with their counts.
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
    stems = [stem for stem, n in frequency.items() if n >= min_df]
    names = term_hashes(stems).view(np.int64)
    order = np.argsort(names)
    idf = bm25_idf(np.array([frequency[stems[row]] for row in order] + [0]), total)
    return names[order], idf, [dict(words[stems[row]].most_common(_MAX_FORMS)) for row in order]
