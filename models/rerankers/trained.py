"""Cross-encoders that `chamfer train` wrote as rerankers: one graph from joined token ids to scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Pair, ScoreKind
from chamfer.core.types import F32, Document, Query
from chamfer.models.backends.backend import Backbone, load_backbone
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.backends.token_batches import CHARACTERS_PER_TOKEN, Tokenizer, Tokens, token_batches
from chamfer.models.networks.checkpoint import Description, describe, fingerprint, open_checkpoint, open_trained_tower
from chamfer.models.networks.heads import CrossHead, CrossHeadConfig
from chamfer.models.networks.transformer import Tower, folder_of
from chamfer.models.rerankers.pair_scores import refuse_images, scores_of


class CrossModule(nn.Module):
    """(ids, mask) i64 [B, L] of [CLS] query [SEP] document [SEP] -> scores [B]; segments follow from the separators."""

    special_ids: Tensor

    def __init__(self, tower: Tower, head: CrossHead, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.register_buffer("special_ids", torch.tensor(special_ids), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        special = (ids[:, :, None] == self.special_ids).any(dim=-1) & (mask > 0)
        separators = (special.long().cumsum(dim=1) - special.long()) - 1  # before a token, without the opening [CLS]
        segments = (separators > 0).long() * mask
        hidden = self.tower(ids, mask, segments)
        scores: Tensor = self.head(hidden, ids, mask, segments, special)
        return scores


def pair_ids(query: Sequence[int], document: Sequence[int], limit: int) -> list[int]:
    """[CLS] query [SEP] document [SEP] from the ids of two texts, each with its own special tokens.

    At most `limit` ids: the query takes at most half of them, the document the rest.
    """
    query_part = [*query[: limit // 2 - 1], query[-1]] if len(query) > limit // 2 else list(query)
    return [*query_part, *document[1:-1][: limit - len(query_part) - 1], document[-1]]


class TrainedReranker:
    """Scores pairs with one graph. Made by `load_trained_reranker`."""

    def __init__(self, name: str, digest: str, description: Description, graph: Backbone, batch_tokens: int) -> None:
        self.name = name
        self.fingerprint = digest
        self._description = description
        self._graph = graph
        self._tokenizer = Tokenizer(folder_of(description.backbone) / "tokenizer.json")
        self._batch_tokens = batch_tokens

    reads_images: ClassVar[bool] = False
    score_kind: ClassVar[ScoreKind] = "logit"

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """Logits f32 [n], aligned with the documents. Raises Internal if the model gives NaN."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Pairs of different queries share batches."""
        refuse_images(self.name, pairs)
        limit = self._description.document_tokens
        characters = limit * CHARACTERS_PER_TOKEN
        queries = list(dict.fromkeys(query.text for query, _ in pairs))
        query_tokens = self._tokenizer([text[:characters] for text in queries], self._description.query_tokens)
        query_ids = dict(zip(queries, query_tokens.ids, strict=True))
        texts = self._tokenizer([document.content[:characters] for _, document in pairs], limit)
        joined = [pair_ids(query_ids[query.text], ids, limit) for (query, _), ids in zip(pairs, texts.ids, strict=True)]
        scores = np.zeros(len(pairs), dtype=np.float32)
        tokens = Tokens(joined, texts.n_tokens, texts.truncated)
        for batch in token_batches(tokens, limit=limit, budget=self._batch_tokens, pad_id=self._tokenizer.pad_id):
            scores[batch.rows] = self._graph(batch.ids, batch.mask)
        return scores


def load_trained_reranker(name: str, folder: Path, config: DeviceConfig) -> TrainedReranker:
    """The reranker in a folder; InvalidInput for a model of another kind."""
    description = describe(folder)
    if description.kind != "cross":
        raise InvalidInput(f"{folder} holds a model of kind {description.kind}, expected a cross-encoder (cross)")
    digest = fingerprint(folder)
    graph = load_backbone(lambda: open_cross_module(folder), digest, config)
    return TrainedReranker(name, digest, description, graph, config.batch_tokens)


def open_cross_module(folder: Path) -> CrossModule:
    """The network of a checkpoint with its adapter merged in, in evaluation mode."""
    checkpoint = open_checkpoint(folder)
    description = checkpoint.description
    tower = open_trained_tower(description, checkpoint.adapter)
    head = CrossHead(sum(tower.widths), CrossHeadConfig(**description.head))
    head.load_state_dict(checkpoint.head)
    special_ids = Tokenizer(folder_of(description.backbone) / "tokenizer.json").special_ids
    return CrossModule(tower, head, special_ids).eval()
