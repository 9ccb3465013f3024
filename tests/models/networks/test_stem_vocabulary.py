"""Terms of learned sparse vectors: numbered by stem, weighted by BM25's saturation, placed at their first token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chamfer.models.backends.token_batches import Tokenizer
from chamfer.models.networks.features import MINI
from chamfer.models.networks.stem_vocabulary import TermConfig, Terms, build_vocabulary
from chamfer.models.networks.transformer import folder_of

TEXTS = ["The king rode on a horse", "Two kings and their horses", "A castle of a king"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(folder_of(MINI) / "tokenizer.json")


@pytest.fixture(scope="module")
def terms() -> Terms:
    return Terms(build_vocabulary(TEXTS, "english", 2)[0], TermConfig(buckets=16))


def test_the_vocabulary_has_the_stems_of_at_least_min_df_texts_with_idf_and_words() -> None:
    names, idf, words = build_vocabulary([*TEXTS, "kings kings"], "english", 2)
    assert (names[:-1] < names[1:]).all()
    by_forms = {
        tuple(sorted(word_counts.items())): float(value) for word_counts, value in zip(words, idf, strict=False)
    }
    king, horse = (("king", 2), ("kings", 3)), (("horse", 1), ("horses", 1))
    assert set(by_forms) == {king, horse}
    assert by_forms[king] == pytest.approx(math.log(5 / 4.5))
    assert by_forms[horse] == pytest.approx(math.log(5 / 2.5))
    assert idf[-1] == pytest.approx(math.log(5 / 0.5))
    assert len(idf) == len(names) + 1


def test_forms_of_a_word_share_a_number_and_unknown_words_get_a_bucket(terms: Terms) -> None:
    vocabulary_numbers = terms.numbers(["king", "hors"])
    assert sorted(vocabulary_numbers.tolist()) == [0, 1]
    query_numbers, counts = terms.query("Kings king zebra zebra Zebras")
    assert counts.tolist() == [2.0, 3.0]
    assert query_numbers[0] == vocabulary_numbers[0]
    assert 2 <= query_numbers[1] < len(terms)
    assert terms.query("the of")[0].tolist() == []


def test_a_term_s_weight_is_the_saturation_of_its_count(terms: Terms, tokenizer: Tokenizer) -> None:
    text = "king king horse"
    placed = terms.document(text, tokenizer([text], 64).ids[0], tokenizer)
    by_number = dict(zip(placed.terms.tolist(), placed.saturation.tolist(), strict=True))
    norm = 1.2 * (0.25 + 0.75 * 3 / 80)
    king, horse = terms.numbers(["king", "hors"]).tolist()
    assert by_number[king] == pytest.approx(2 * 2.2 / (2 + norm))
    assert by_number[horse] == pytest.approx(1 * 2.2 / (1 + norm))


def test_each_term_is_placed_at_the_first_piece_of_its_words(terms: Terms, tokenizer: Tokenizer) -> None:
    text = "The unhorsed King, Éric's king"
    ids = tokenizer([text], 64).ids[0]
    placed = terms.document(text, ids, tokenizer)
    pieces = [tokenizer._tokenizer.id_to_token(i) for i in ids]
    begun = {pieces[p]: int(placed.terms[placed.at[p]]) for p in np.flatnonzero(placed.at >= 0)}
    king = int(terms.numbers(["king"])[0])
    assert begun["king"] == king
    assert [p for p, piece in enumerate(pieces) if piece == "king"] == [
        p for p in np.flatnonzero(placed.at >= 0) if placed.terms[placed.at[p]] == king
    ]
    assert {"un", "eric", "king"} <= set(begun)
    assert not any(piece.startswith("##") or piece in ("[CLS]", "[SEP]", "the") for piece in begun)
    assert placed.truncated.tolist() == []


def test_terms_beyond_the_token_limit_are_kept_without_a_position(terms: Terms, tokenizer: Tokenizer) -> None:
    text = "horse " * 10 + "king"
    placed = terms.document(text, tokenizer([text], 6).ids[0], tokenizer)
    assert [int(placed.terms[index]) for index in placed.truncated] == terms.numbers(["king"]).tolist()


def test_letters_that_lengthen_in_lower_case_lose_positions_and_never_get_wrong_ones(
    terms: Terms, tokenizer: Tokenizer
) -> None:
    text = "İİİ king İ horse"
    ids = tokenizer([text], 64).ids[0]
    placed = terms.document(text, ids, tokenizer)
    for p in np.flatnonzero(placed.at >= 0):
        if (piece := tokenizer._tokenizer.id_to_token(ids[p])) in ("king", "horse"):
            stem = {"king": "king", "horse": "hors"}[piece]
            assert placed.terms[placed.at[p]] == terms.numbers([stem])[0]
    assert len(placed.terms) == len(set(terms.numbers(["king", "hors"]).tolist()) | set(placed.terms.tolist()))
