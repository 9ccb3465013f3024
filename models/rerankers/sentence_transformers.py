"""Cross-encoders of sentence-transformers as rerankers.

A single transformer with a classification head, as all common text cross-encoders are, runs on the decided backend;
its pairs are tokenised once and batched by padded length. Any other CrossEncoder (several modules, prompts) runs
through the library's own predict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Pair, ScoreKind
from chamfer.core.types import F32, I64, Document, Query
from chamfer.models.backends.backend import load_backbone
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.backends.example_inputs import token_inputs
from chamfer.models.backends.hub import model_fingerprint, open_model
from chamfer.models.backends.token_batches import CHARACTERS_PER_TOKEN, clean, length_groups
from chamfer.models.rerankers.pair_scores import refuse_images, scores_of

if TYPE_CHECKING:
    import torch

Prediction = Callable[[list[tuple[str, str]]], F32]
SUPPORTED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class CrossEncoderReranker:
    """Scores (query, document) pairs with one model. Made by `load_cross_encoder`.

    `predict` maps cleaned text pairs to scores f32 [n], in order.
    """

    reads_images = False

    def __init__(self, name: str, fingerprint: str, limit: int, kind: ScoreKind, predict: Prediction) -> None:
        self.name = name
        self.score_kind = kind
        self.fingerprint = fingerprint
        self._characters = limit * CHARACTERS_PER_TOKEN
        self._predict = predict

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """Scores f32 [n] through the model's own activation. Raises Internal if the model gives NaN."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Texts are cut to the model's length, the longer one first."""
        refuse_images(self.name, pairs)
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        return self._predict([(self._cut(query.text), self._cut(document.content)) for query, document in pairs])

    def _cut(self, text: str) -> str:
        return clean(text[: self._characters])


class PairPrediction:
    """Text pairs to scores through a backbone whose output is one logit per pair."""

    def __init__(self, model: Any, limit: int, config: DeviceConfig, name: str) -> None:
        self._tokenizer = model.tokenizer
        self._limit = limit
        self._budget = config.batch_tokens
        self._activation = model.activation_fn
        self._inputs = [key for key in SUPPORTED_INPUTS if key in self._tokenizer.model_input_names]
        module = model.transformers_model
        inputs = token_inputs(len(self._inputs))
        self._backbone = load_backbone(
            lambda: _logits_module(module, self._inputs), digest_of("pair logits", name), config, inputs
        )

    def __call__(self, pairs: list[tuple[str, str]]) -> F32:
        encoded = self._tokenizer(pairs, truncation="longest_first", max_length=self._limit, verbose=False)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        logits = np.zeros((len(pairs), 1), dtype=np.float32)
        for width, rows in length_groups(lengths, limit=self._limit, budget=self._budget):
            arrays = [self._padded(name, encoded[name], rows, width) for name in self._inputs]
            logits[rows] = self._backbone(*arrays).reshape(len(rows), 1)
        return self._activated(logits)

    def _padded(self, name: str, values: list[list[int]], rows: list[int], width: int) -> I64:
        fill = self._tokenizer.pad_token_id if name == "input_ids" else 0
        padded = np.full((len(rows), width), fill, dtype=np.int64)
        for line, row in enumerate(rows):
            padded[line, : len(values[row])] = values[row]
        return padded

    def _activated(self, logits: F32) -> F32:
        import torch

        with torch.inference_mode():
            scores: F32 = self._activation(torch.from_numpy(logits)).numpy()
        return scores.reshape(-1)


def load_cross_encoder(name: str, config: DeviceConfig) -> CrossEncoderReranker:
    """The reranker of this hub name or local path. InvalidInput for a model with more than one label."""
    model = open_model("CrossEncoder", name, config)
    if (labels := int(model.num_labels)) != 1:
        raise InvalidInput(f"{name!r} gives {labels} labels per pair, expected a reranker with one")
    limit = int(model.max_seq_length or 512)
    identity = digest_of(model_fingerprint(model), type(model.activation_fn).__name__)
    if _is_plain(model):
        predict: Prediction = PairPrediction(model, limit, config, identity)
    else:
        predict = _library_prediction(model, limit, config.batch_tokens)
    kind: ScoreKind = "probability" if type(model.activation_fn).__name__ == "Sigmoid" else "logit"
    return CrossEncoderReranker(name, identity, limit, kind, predict)


def _is_plain(model: Any) -> bool:
    """Whether the model is one transformer with a classification head, on token ids alone and without a prompt."""
    architecture = type(model.transformers_model).__name__
    tokenizer = model.tokenizer
    return (
        len(model) == 1
        and architecture.endswith("ForSequenceClassification")
        and getattr(model, "default_prompt_name", None) is None
        and bool(getattr(tokenizer, "is_fast", False))
        and tokenizer.padding_side == "right"
        and set(tokenizer.model_input_names) <= set(SUPPORTED_INPUTS)
    )


def _library_prediction(model: Any, limit: int, budget: int) -> Prediction:
    def predict(pairs: list[tuple[str, str]]) -> F32:
        scores = np.zeros(len(pairs), dtype=np.float32)
        counts = model.tokenizer([" ".join(pair) for pair in pairs], truncation=False, verbose=False)["input_ids"]
        lengths = [min(len(ids), limit) for ids in counts]
        for _, rows in length_groups(lengths, limit=limit, budget=budget):
            predicted = model.predict([pairs[row] for row in rows], batch_size=len(rows), show_progress_bar=False)
            scores[rows] = np.asarray(predicted, dtype=np.float32).reshape(len(rows))
        return scores

    return predict


def _logits_module(transformer: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    import torch

    class Logits(torch.nn.Module):
        """The tokenizer's arrays i64 [B, L], in order -> logits f32 [B, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.transformer(**dict(zip(names, arrays, strict=True))).logits
            return logits

    return Logits()
