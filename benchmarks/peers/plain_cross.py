"""A cross-encoder written by `chamfer train`, opened as a CrossEncoder of sentence-transformers.

The network is the same, in torch fp32; `predict` of that library sorts, batches and pads the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chamfer.models.backends.token_batches import Tokenizer
from chamfer.models.networks.checkpoint import describe
from chamfer.models.networks.transformer import folder_of
from chamfer.models.rerankers.trained import open_cross_module, pair_ids


class PairModule(torch.nn.Module):
    """Maps text pairs to scores, with the interface that CrossEncoder expects of its modules."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        description = describe(folder)
        self.tokenizer = Tokenizer(folder_of(description.backbone) / "tokenizer.json")
        self.max_seq_length = description.document_tokens
        self._query_tokens = description.query_tokens
        self._module = open_cross_module(folder)

    def preprocess(self, inputs: Sequence[Sequence[str]], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Token ids and attention mask i64 [B, T], padded to the longest pair."""
        queries = self.tokenizer([query for query, _ in inputs], self._query_tokens).ids
        documents = self.tokenizer([document for _, document in inputs], self.max_seq_length).ids
        pairs = zip(queries, documents, strict=True)
        ids = [torch.tensor(pair_ids(query, document, self.max_seq_length)) for query, document in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(token_ids) for token_ids in ids], batch_first=True)
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=self.tokenizer.pad_id),
            "attention_mask": mask,
        }

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Adds scores f32 [B, 1]."""
        scores = self._module(features["input_ids"], features["attention_mask"])
        return {**features, "scores": scores[:, None]}


def plain_cross_encoder(folder: Path) -> Any:
    """The CrossEncoder; its scores are logits."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(modules=[PairModule(folder)], device="cpu", activation_fn=torch.nn.Identity())
