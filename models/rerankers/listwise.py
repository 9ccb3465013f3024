"""UniME-V2-Reranker's two ways (arXiv 2510.13515): pairs one by one for a few, a numbered list for a window.

The paper decodes the number of the one right candidate. A ranking needs more: the logits of all numbers at the place
where the answer's number stands. Longer lists slide: windows from the end to the beginning, overlapping, carry the
best upwards (as Sun et al., EMNLP 2023, do with generated permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.chat_model import GenerativeReranker, LanguageModel, shortened_document, shortened_query
from chamfer.models.rerankers.pair_scores import refuse_images
from chamfer.models.rerankers.prompts import LIST_ANSWER_START, LIST_CLOSING, LIST_OPENING, UNIME_PAIR, list_messages

MAX_WINDOW = 9  # numbers of one digit, which are one token in every vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class ListwiseConfig:
    """pairwise_up_to   lists up to this length are judged pair by pair
    window           candidates of one numbered list
    step             how far the next window lies before the last
    rotations        how often each window is asked, the list turned each time, so that the bias of models towards
                     certain places averages out; at most `window`
    document_tokens  tokens of each candidate in a list
    """

    pairwise_up_to: int = 3
    window: int = 8
    step: int = 4
    rotations: int = 1
    document_tokens: int = 512

    def __post_init__(self) -> None:
        if not 2 <= self.window <= MAX_WINDOW:
            raise InvalidInput(f"the window is {self.window}, expected 2 to {MAX_WINDOW}: numbers of one digit")
        if not 1 <= self.step <= self.window:
            raise InvalidInput(f"the step is {self.step}, expected 1 to the window of {self.window}")
        if not 1 <= self.rotations <= self.window:
            raise InvalidInput(f"{self.rotations} rotations, expected 1 to the window of {self.window}")


class ListwiseReranker:
    """Judges a list as a whole: a score depends on the others in the list, and is comparable within it alone.

    Up to `pairwise_up_to` documents: log-odds. Up to `window`: log-probability of being named. More: minus the place.
    """

    score_kind: ScoreKind = "list"

    def __init__(self, name: str, model: LanguageModel, config: ListwiseConfig) -> None:
        self.name = name
        self.reads_images = model.reads_images
        self._pairwise = GenerativeReranker(name, model, UNIME_PAIR)
        self._model = model
        self._config = config
        self._number_ids = [model.answer_ids([str(number)])[0] for number in range(1, config.window + 1)]
        prompts = [LIST_OPENING, LIST_CLOSING, LIST_ANSWER_START]
        self.fingerprint = digest_of("listwise", self._pairwise.fingerprint, prompts, asdict(config))

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker. Documents come in the order of the stage before, the best first."""
        if not self.reads_images:
            refuse_images(self.name, [(query, document) for document in documents])
        if len(documents) <= self._config.pairwise_up_to:
            return self._pairwise.score(query, documents)
        if len(documents) <= self._config.window:
            return self._window_scores(query, documents)
        order = list(range(len(documents)))
        stop = len(order)
        while True:
            start = max(0, stop - self._config.window)
            scores = self._window_scores(query, [documents[place] for place in order[start:stop]])
            order[start:stop] = [order[start + place] for place in np.argsort(-scores, kind="stable")]
            if start == 0:
                break
            stop -= self._config.step
        out = np.zeros(len(order), dtype=np.float32)
        out[order] = -np.arange(len(order), dtype=np.float32)
        return out

    def _window_scores(self, query: Query, documents: Sequence[Document]) -> F32:
        """Log-probability f32 [n] that each of at most `window` documents is named, averaged over the rotations."""
        n = len(documents)
        asked = shortened_query(self._model, query)
        shown = [shortened_document(self._model, document, self._config.document_tokens) for document in documents]
        turns = [turn * n // self._config.rotations for turn in range(min(self._config.rotations, n))]
        prompts = [
            self._model.prompt(list_messages(asked, [*shown[turn:], *shown[:turn]]), LIST_ANSWER_START)
            for turn in turns
        ]
        logits = self._model.next_logits(prompts, self._number_ids[:n])
        named = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        scores = np.mean([np.roll(row, turn) for row, turn in zip(named, turns, strict=True)], axis=0)
        if not np.isfinite(scores).all():
            raise Internal(f"reranker {self.name} gave a score that is not finite")
        return np.asarray(scores, dtype=np.float32)
