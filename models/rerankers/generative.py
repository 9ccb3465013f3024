"""Chat models as rerankers, of texts and of images: the log-odds of two answers, read from one forward pass.

`yes_no:NAME` prompts as Qwen3-Reranker and Qwen3-VL-Reranker were trained, `true_false:NAME` prompts any chat model
without training (MM-Embed, arXiv 2411.02571), `unime:NAME` prompts as UniME-V2 does (models/rerankers/listwise.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Pair, ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.models.networks.chat_model import LanguageModel, Prompt, shortened_document, shortened_query
from chamfer.models.rerankers.pair_scores import refuse_images, scores_of
from chamfer.models.rerankers.prompts import JudgePrompt, pair_messages


class GenerativeReranker:
    """Scores a pair by log p(positive) - log p(negative) of the first token of the answer to a yes-or-no question."""

    score_kind: ScoreKind = "logit"

    def __init__(self, name: str, model: LanguageModel, judge_prompt: JudgePrompt) -> None:
        self.name = name
        self.reads_images = model.reads_images
        self.fingerprint = digest_of(model.fingerprint, judge_prompt.digest)
        self.model = model
        self._judge_prompt = judge_prompt
        positive, negative = model.answer_ids(judge_prompt.positive), model.answer_ids(judge_prompt.negative)
        if ambiguous := set(positive) & set(negative):
            raise InvalidInput(f"model {name} has the tokens {sorted(ambiguous)} for both answers")
        self._answer_ids = [*positive, *negative]
        self._n_positive = len(positive)

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Texts are cut to MAX_TEXT_TOKENS, images shrunk to
        MAX_IMAGE_SIDE.
        """
        if not self.reads_images:
            refuse_images(self.name, pairs)
        prompts = [self._prompt(query, document) for query, document in pairs]
        logits = self.model.next_logits(prompts, self._answer_ids)
        return log_odds(logits[:, : self._n_positive], logits[:, self._n_positive :])

    def _prompt(self, query: Query, document: Document) -> Prompt:
        messages = pair_messages(
            self._judge_prompt, shortened_query(self.model, query), shortened_document(self.model, document)
        )
        return self.model.prompt(messages, self._judge_prompt.answer_start)


def log_odds(positive: F32, negative: F32) -> F32:
    """log sum exp(positive) - log sum exp(negative), f32 [n], of logits f32 [n, P] and [n, M].

    Its sigmoid is p(positive) / (p(positive) + p(negative)); a constant added to all logits changes nothing.
    """
    odds: F32 = np.logaddexp.reduce(positive, axis=1) - np.logaddexp.reduce(negative, axis=1)
    return odds
