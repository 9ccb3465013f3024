"""Text analysis in several languages."""

from __future__ import annotations

import pytest

from chamfer.core.analysis import AnalysisConfig, Analyzer
from chamfer.core.errors import InvalidInput


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("english", "The Foxes and the running dogs", ["fox", "run", "dog"]),
        ("german", "Die Häuser und der alte Garten", ["haus", "alt", "gart"]),
        ("french", "Les chevaux sont dans la maison", ["cheval", "maison"]),
        ("russian", "Это большие дома", ["больш", "дом"]),
        ("none", "The Foxes", ["the", "foxes"]),
    ],
)
def test_each_language_has_its_own_stems_and_stop_words(language: str, text: str, terms: list[str]) -> None:
    assert Analyzer(AnalysisConfig(language=language))(text) == terms


def test_stop_words_can_be_disabled_or_of_another_language() -> None:
    assert Analyzer(AnalysisConfig(stop_words="none"))("the fox") == ["the", "fox"]
    assert Analyzer(AnalysisConfig(stop_words="german"))("die the fox") == ["the", "fox"]


def test_a_language_without_stop_words_is_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"no stop words for 'lithuanian'.*none or one of arabic"):
        Analyzer(AnalysisConfig(language="lithuanian"))
    assert Analyzer(AnalysisConfig(language="lithuanian", stop_words="none"))("namas")


def test_terms_come_with_their_words_and_offsets() -> None:
    analyzer = Analyzer(AnalysisConfig())
    text = "The Foxes, the running dog's"
    assert analyzer.placed(text) == [("fox", 4), ("run", 15), ("dog", 23)]
    assert analyzer.words(text) == [("fox", "foxes"), ("run", "running"), ("dog", "dog")]
    assert [term for term, _ in analyzer.placed(text)] == analyzer(text)
