"""Our own trained cross-encoders as rerankers: one graph from joined token ids to scores."""

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
from chamfer.models.backends.backend import Backbone, DeviceConfig, load_backbone
from chamfer.models.backends.token_batches import Tokenizer, Tokens, token_batches
from chamfer.models.networks.checkpoint import Description, describe, fingerprint, open_trained_tower, parts_of
from chamfer.models.networks.heads import CrossHead, CrossHeadConfig
from chamfer.models.networks.transformer import Tower, folder_of
from chamfer.models.rerankers.pair_scores import CHARACTERS_PER_TOKEN, refuse_images, scores_of


class CrossModule(nn.Module):
    """(ids, mask) i64 [B, L] of [CLS] query [SEP] document [SEP] -> scores [B]; separators tell the segments."""

    special_ids: Tensor

    def __init__(self, tower: Tower, head: CrossHead, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.register_buffer("special_ids", torch.tensor(special_ids), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        special = (ids[:, :, None] == self.special_ids).any(dim=-1) & (mask > 0)
        closed = (special.long().cumsum(dim=1) - special.long()) - 1  # separators before, the opening token not counted
        segments = (closed > 0).long() * mask
        hidden = self.tower(ids, mask, segments)
        scores: Tensor = self.head(hidden, ids, mask, segments, special)
        return scores


def pair_ids(query: Sequence[int], document: Sequence[int], limit: int) -> list[int]:
    """[CLS] query [SEP] document [SEP] of two framed texts, at most `limit`: the query gets half at most, then the
    document what is left."""
    asked = [*query[: limit // 2 - 1], query[-1]] if len(query) > limit // 2 else list(query)
    return [*asked, *document[1:-1][: limit - len(asked) - 1], document[-1]]


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
        """Scores f32 [n], a logit each, aligned with the documents. Raises Internal if the model gives NaN."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker; one batch whatever their queries."""
        refuse_images(self.name, pairs)
        limit = self._description.document_tokens
        most = limit * CHARACTERS_PER_TOKEN
        queries = list(dict.fromkeys(query.text for query, _ in pairs))
        cut = self._tokenizer([text[:most] for text in queries], self._description.query_tokens)
        asked = dict(zip(queries, cut.ids, strict=True))
        texts = self._tokenizer([document.content[:most] for _, document in pairs], limit)
        joined = [pair_ids(asked[query.text], own, limit) for (query, _), own in zip(pairs, texts.ids, strict=True)]
        scores = np.zeros(len(pairs), dtype=np.float32)
        tokens = Tokens(joined, texts.n_tokens, texts.truncated)
        for batch in token_batches(tokens, limit=limit, budget=self._batch_tokens, pad_id=self._tokenizer.pad_id):
            scores[batch.rows] = self._graph(batch.ids, batch.mask)
        return scores


def load_trained_reranker(name: str, folder: Path, config: DeviceConfig) -> TrainedReranker:
    """The reranker in a folder; InvalidInput for a model of another kind."""
    description = describe(folder)
    if description.kind != "cross":
        raise InvalidInput(f"{folder} holds a {description.kind} encoder, expected a cross-encoder")

    digest = fingerprint(folder, description)
    graph = load_backbone(lambda: open_cross_module(folder, description), digest, config)
    return TrainedReranker(name, digest, description, graph, config.batch_tokens)


def open_cross_module(folder: Path, description: Description) -> CrossModule:
    """The network of a folder, adapters folded in, in evaluation mode."""
    state, changes = parts_of(folder, description)
    tower = open_trained_tower(description, changes)
    head = CrossHead(sum(tower.widths), CrossHeadConfig(**description.head))
    head.load_state_dict(state)
    special_ids = Tokenizer(folder_of(description.backbone) / "tokenizer.json").special_ids
    return CrossModule(tower, head, special_ids).eval()
