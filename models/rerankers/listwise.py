"""UniME-V2-Reranker (arXiv 2510.13515): short lists pair by pair, longer ones as numbered lists in a sliding window.

The paper decodes the number of the one right candidate. A ranking needs more, so the logits of all numbers are read at
the position of the answer. Lists longer than the window are ranked by overlapping windows that slide from the end to
the beginning and carry the best candidates forward (as Sun et al., EMNLP 2023, do with generated permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.models.networks.chat_model import LanguageModel, shortened_document, shortened_query
from chamfer.models.rerankers.generative import GenerativeReranker
from chamfer.models.rerankers.pair_scores import refuse_images
from chamfer.models.rerankers.prompts import LIST_ANSWER_START, LIST_CLOSING, LIST_OPENING, UNIME_PAIR, list_messages

MAX_WINDOW = 9  # a number of one digit is a single token in every vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class ListwiseConfig:
    """How lists are scored.

    pairwise_up_to   lists up to this length are scored pair by pair
    window           candidates in one numbered list
    step             by how many candidates the window moves
    rotations        prompts per window, the list rotated for each, which averages out position bias; at most `window`
    document_tokens  limit of each candidate in a list, in tokens
    """

    pairwise_up_to: int = 3
    window: int = 8
    step: int = 4
    rotations: int = 1
    document_tokens: int = 512

    def __post_init__(self) -> None:
        if not 2 <= self.window <= MAX_WINDOW:
            raise InvalidInput(f"window is {self.window}, expected 2 to {MAX_WINDOW}, numbers of one digit")
        if not 1 <= self.step <= self.window:
            raise InvalidInput(f"step is {self.step}, expected 1 to the window, {self.window}")
        if not 1 <= self.rotations <= self.window:
            raise InvalidInput(f"rotations is {self.rotations}, expected 1 to the window, {self.window}")


class ListwiseReranker:
    """Scores a list as a whole: a score depends on the rest of the list and is comparable within it only.

    Up to `pairwise_up_to` documents it is a log-odds, up to `window` the log-probability of being named, beyond that
    minus the rank.
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
        """See chamfer.core.protocols.Reranker. Documents are expected in the order of the previous stage."""
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
            scores = self._window_scores(query, [documents[row] for row in order[start:stop]])
            order[start:stop] = [order[start + rank] for rank in np.argsort(-scores, kind="stable")]
            if start == 0:
                break
            stop -= self._config.step
        ranked = np.zeros(len(order), dtype=np.float32)
        ranked[order] = -np.arange(len(order), dtype=np.float32)
        return ranked

    def _window_scores(self, query: Query, documents: Sequence[Document]) -> F32:
        """Log-probability f32 [n] that each of at most `window` documents is named, averaged over the rotations."""
        n = len(documents)
        short_query = shortened_query(self._model, query)
        candidates = [shortened_document(self._model, document, self._config.document_tokens) for document in documents]
        turns = [turn * n // self._config.rotations for turn in range(min(self._config.rotations, n))]
        prompts = [
            self._model.prompt(list_messages(short_query, [*candidates[turn:], *candidates[:turn]]), LIST_ANSWER_START)
            for turn in turns
        ]
        logits = self._model.next_logits(prompts, self._number_ids[:n])
        named = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        scores = np.mean([np.roll(row, turn) for row, turn in zip(named, turns, strict=True)], axis=0)
        if not np.isfinite(scores).all():
            raise Internal(f"reranker {self.name} gave a score that is not finite")
        return np.asarray(scores, dtype=np.float32)
