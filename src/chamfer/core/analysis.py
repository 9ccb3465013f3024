"""Text analysis: lower-cased word tokens without stop words, reduced to Snowball stems (PyStemmer)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import InvalidInput

U64 = NDArray[np.uint64]

_WORD = re.compile(r"(?u)\b\w\w+\b")
# The English stop words of Lucene's StandardAnalyzer.
_ENGLISH = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    )
)
_STEM_CACHE = 200_000


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """How text becomes terms.

    language     a Snowball language (english, german, ...), or none to disable stemming
    stop_words   the language whose stop words are removed; none to keep all words; own for those of `language`.
                 English uses Lucene's short list, other languages the lists of the package stop-words.
    """

    language: str = "english"
    stop_words: str = "own"


class Analyzer:
    """Turns texts into lists of terms. Equal settings give equal terms. Not thread-safe."""

    def __init__(self, config: AnalysisConfig) -> None:
        self._stop_words = _stop_words(config.language if config.stop_words == "own" else config.stop_words)
        self._stemmer = _stemmer(config.language)
        self._cache: dict[str, str | None] = {}

    def __call__(self, text: str) -> list[str]:
        terms = []
        cache = self._cache
        for word in _WORD.findall(text.lower()):
            if word in cache:
                term = cache[word]
            else:
                term = self._term(word)
                if len(cache) < _STEM_CACHE:
                    cache[word] = term
            if term is not None:
                terms.append(term)
        return terms

    def placed(self, text: str) -> list[tuple[str, int]]:
        """The same terms, each with the offset of its word's first character in the lower-cased text."""
        terms_and_starts = ((self(match.group()), match.start()) for match in _WORD.finditer(text.lower()))
        return [(terms[0], start) for terms, start in terms_and_starts if terms]

    def words(self, text: str) -> list[tuple[str, str]]:
        """The same terms, each with the word that it was derived from."""
        terms_and_words = ((self(word), word) for word in _WORD.findall(text.lower()))
        return [(terms[0], word) for terms, word in terms_and_words if terms]

    def _term(self, word: str) -> str | None:
        if word in self._stop_words:
            return None
        return str(self._stemmer.stemWord(word)) if self._stemmer is not None else word


def term_hashes(terms: Iterable[str]) -> U64:
    """64-bit BLAKE2b hash of each term, u64 [n], its key in the index (10^6 terms collide with probability 10^-7)."""
    digests = b"".join(blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in terms)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _stop_words(language: str) -> frozenset[str]:
    if language == "none":
        return frozenset()
    if language == "english":
        return _ENGLISH
    import stop_words

    if language not in stop_words.AVAILABLE_LANGUAGES:
        raise InvalidInput(
            f"there are no stop words for {language!r}; set lexical.analysis.stop_words to none or one of "
            f"{', '.join(sorted(stop_words.AVAILABLE_LANGUAGES))}"
        )
    return frozenset(word.lower() for word in stop_words.get_stop_words(language))


def _stemmer(language: str) -> Any:
    if language == "none":
        return None
    import Stemmer

    if language not in Stemmer.algorithms():
        languages = ", ".join(sorted(Stemmer.algorithms()))
        raise InvalidInput(f"lexical.analysis.language is {language!r}, expected none or one of {languages}")
    return Stemmer.Stemmer(language)
