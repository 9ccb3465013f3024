"""Reference pairs with the scores that a model is known to give, to check a reranker against.

The same weights rank differently with another template, activation, answer tokens or dtype, and without any error
(QwenLM/Qwen3-Embedding #71, vLLM #21681 and many more). `chamfer doctor rerank` compares and names the likely cause.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.protocols import Reranker
from chamfer.core.types import F32, Document, Query

# Differences up to this fraction of the spread of the reference scores are explained by dtypes.
ROUNDING_SHARE = 0.1
ORDINARY_PAIRS = (
    ("Why did the fox lose his tail?", "A fox lost his tail in a trap and asked all foxes to cut theirs off."),
    ("Why did the fox lose his tail?", "A thirsty crow dropped pebbles into a pitcher until the water rose."),
    ("Who freed the lion?", "A mouse gnawed the net and freed the lion who had spared her."),
    ("Who freed the lion?", "The lion is the largest cat of Africa."),
    ("Who freed the lion?", ""),
    ("how do i reset a forgotten password", "Open the sign-in page, choose 'Forgot password' and follow the mail."),
    ("how do i reset a forgotten password", "Passwords should have at least twelve characters. " * 40),
    ("Ärzte in Zürich", "Die Praxis liegt am Zürichberg; Termine gibt es täglich."),
)


@dataclass(frozen=True, slots=True)
class ReferencePair:
    """The score of a model for one pair."""

    query: str
    document: str
    score: float


@dataclass(frozen=True, slots=True)
class Reference:
    """The known scores of a model; `source` says where they were published or measured."""

    model: str
    source: str
    tolerance: float
    pairs: tuple[ReferencePair, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """How far a reranker is from its reference; `cause` is empty if they agree."""

    largest_difference: float
    scores: tuple[float, ...]
    cause: str

    @property
    def agrees(self) -> bool:
        return not self.cause


def _berlin(model: str, relevant: float, other: float) -> Reference:
    question = "How many people live in Berlin?"
    answer = "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."
    pairs = (
        ReferencePair(question, answer, relevant),
        ReferencePair(question, "Berlin is well known for its museums.", other),
    )
    return Reference(model, f"the model card of {model}", 0.05, pairs)


PUBLISHED = {
    reference.model: reference
    for reference in (
        _berlin("cross-encoder/ms-marco-MiniLM-L6-v2", 8.607138, -4.320078),
        _berlin("cross-encoder/ms-marco-MiniLM-L2-v2", 8.510401, -4.860082),
    )
}


def compare(reranker: Reranker, reference: Reference) -> Finding:
    """Scores the reference pairs, and names the likely cause if they differ from the reference."""
    scores = _scores(reranker, [(pair.query, pair.document) for pair in reference.pairs])
    expected = np.array([pair.score for pair in reference.pairs], dtype=np.float32)
    largest = float(np.abs(scores - expected).max())
    cause = "" if largest <= reference.tolerance else _cause(scores, expected, reference.tolerance)
    return Finding(largest, tuple(scores.tolist()), cause)


def record(reranker: Reranker, source: str, tolerance: float = 0.02) -> Reference:
    """A reference from this reranker's scores of ORDINARY_PAIRS, to compare other runtimes with."""
    scores = _scores(reranker, ORDINARY_PAIRS)
    pairs = tuple(
        ReferencePair(query, document, score)
        for (query, document), score in zip(ORDINARY_PAIRS, scores.tolist(), strict=True)
    )
    return Reference(reranker.name, source, tolerance, pairs)


def write_reference(reference: Reference, path: Path) -> None:
    """Writes a reference as JSON."""
    path.write_text(json.dumps(asdict(reference), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_reference(path: Path) -> Reference:
    """Reads what `write_reference` wrote. NotFound without the file, InvalidInput for any other content."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pairs = tuple(ReferencePair(str(p["query"]), str(p["document"]), float(p["score"])) for p in stored["pairs"])
        reference = Reference(str(stored["model"]), str(stored["source"]), float(stored["tolerance"]), pairs)
    except FileNotFoundError:
        raise NotFound(f"no reference file at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is not a file of reference scores: {error!r}") from error
    if not reference.pairs:
        raise InvalidInput(f"{path} holds no pairs")
    return reference


def _scores(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> F32:
    """One call per pair: a reference score must not depend on the rest of a batch."""
    return np.array(
        [reranker.score(Query("reference", query), [Document("0", text)])[0] for query, text in pairs], dtype=np.float32
    )


def _cause(scores: F32, expected: F32, tolerance: float) -> str:
    explanations: tuple[tuple[str, Callable[[], bool]], ...] = (
        (
            "a sigmoid is applied twice: the reference holds probabilities, these are sigmoids of them",
            lambda: _are_probabilities(expected) and _near(scores, _sigmoid(expected), tolerance),
        ),
        (
            "a sigmoid is applied that the reference does not have: the activation differs",
            lambda: _near(scores, _sigmoid(expected), tolerance),
        ),
        (
            "a sigmoid is missing: the reference holds probabilities, these are logits",
            lambda: _are_probabilities(expected) and _near(_sigmoid(scores), expected, tolerance),
        ),
        (
            "the two answers are swapped: each score is minus the reference",
            lambda: _near(-scores, expected, tolerance),
        ),
        (
            "rounding: dtype, quantisation or runtime differ",
            lambda: _near(scores, expected, ROUNDING_SHARE * float(np.ptp(expected))),
        ),
    )
    for text, holds in explanations:
        if holds():
            return text
    return "template, answer tokens, tokenizer or weights differ: no simple relation to the reference"


def _sigmoid(values: F32) -> F32:
    probabilities: F32 = 0.5 * (1.0 + np.tanh(0.5 * values))
    return probabilities


def _near(a: F32, b: F32, tolerance: float) -> bool:
    return bool(np.abs(a - b).max() <= tolerance)


def _are_probabilities(values: F32) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)
