"""`doctor rerank`: what counts as agreement, which cause is named, and the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from support_models import tiny_transformer
from typer.testing import CliRunner

from chamfer.cli.doctor import doctor
from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.reference_scores import (
    ORDINARY_PAIRS,
    PUBLISHED,
    Reference,
    ReferencePair,
    compare,
    read_reference,
    record,
    write_reference,
)


def sigmoid(x: F32) -> F32:
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float32)


class GivenScores:
    """Returns the given scores, changed by a function."""

    name = fingerprint = "given"
    reads_images = False
    score_kind = "logit"

    def __init__(self, pairs: Sequence[ReferencePair], change: Callable[[F32], F32]) -> None:
        self._scores = {(pair.query, pair.document): pair.score for pair in pairs}
        self._change = change

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        scores = [self._scores[query.text, document.text] for document in documents]
        return self._change(np.array(scores, dtype=np.float32))


def reference(*scores: float) -> Reference:
    pairs = tuple(ReferencePair(f"q{i}", f"d{i}", score) for i, score in enumerate(scores))
    return Reference("m", "a test", 0.01, pairs)


LOGITS = reference(8.6, -4.3, 0.2, 3.0)
PROBABILITIES = reference(0.99, 0.013, 0.55, 0.9)


@pytest.mark.parametrize(
    ("expected", "change", "cause"),
    [
        (LOGITS, lambda x: x + 0.005, ""),
        (LOGITS, sigmoid, "a sigmoid is applied that"),
        (PROBABILITIES, sigmoid, "a sigmoid is applied twice"),
        (PROBABILITIES, lambda x: np.log(x / (1 - x)), "a sigmoid is missing"),
        (LOGITS, lambda x: -x, "swapped"),
        (LOGITS, lambda x: x * 1.03, "rounding"),
        (LOGITS, lambda x: x[::-1] * 0 + 7, "template"),
    ],
)
def test_the_cause_of_a_difference_is_named(expected: Reference, change: Callable[[F32], F32], cause: str) -> None:
    finding = compare(GivenScores(expected.pairs, change), expected)  # type: ignore[arg-type]  # its kind is a plain string
    assert finding.agrees == (not cause)
    assert cause in finding.cause


def test_the_published_scores_are_those_of_the_model_cards() -> None:
    scores = [pair.score for pair in PUBLISHED["cross-encoder/ms-marco-MiniLM-L6-v2"].pairs]
    assert scores == [8.607138, -4.320078]


def test_a_recorded_reference_agrees_with_the_model_it_was_recorded_from(tmp_path: Path) -> None:
    pairs = [ReferencePair(query, text, float(len(text))) for query, text in ORDINARY_PAIRS]
    recorded = record(GivenScores(pairs, lambda x: x), "here")  # type: ignore[arg-type]
    write_reference(recorded, tmp_path / "scores.json")
    assert read_reference(tmp_path / "scores.json") == recorded
    assert compare(GivenScores(pairs, lambda x: x), recorded).largest_difference == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "m", "source": "s", "tolerance": 1, "pairs": []}'])
def test_a_file_that_is_not_a_reference_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(InvalidInput):
        read_reference(tmp_path / "scores.json")
    with pytest.raises(NotFound):
        read_reference(tmp_path / "nothing.json")


@pytest.mark.filterwarnings("ignore")  # transformers warns about tiny models
def test_the_command_records_a_reference_and_detects_another_activation(tmp_path: Path) -> None:
    folder = tiny_transformer(tmp_path / "one", "BertForSequenceClassification", num_labels=1)
    options = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    bare = tiny_transformer(tmp_path / "two", "BertForSequenceClassification", num_labels=1, **options)

    def doctor_rerank(*arguments: object) -> Result:
        return CliRunner().invoke(doctor, ["rerank", *map(str, arguments)])

    scores = tmp_path / "scores.json"
    assert doctor_rerank(bare, "--record", scores).exit_code == 0
    assert "agrees" in doctor_rerank(bare, "--reference", scores).stdout
    other = doctor_rerank(folder, "--reference", scores)
    assert other.exit_code == 1
    assert "activation differs" in other.stderr
    assert isinstance(doctor_rerank(folder).exception, InvalidInput)
