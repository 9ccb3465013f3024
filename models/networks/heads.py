"""The trained heads above a tower, in training and inference: token vectors, sparse weights, scores of pairs.

Names of configuration fields, parameters and buffers are those of stored checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.models.networks.token_pooling import MIN_TOKEN_WEIGHT

_UNIT_SOFTPLUS = 0.5413  # softplus(0.5413) = 1: weights start at 1


@dataclass(frozen=True, kw_only=True)
class TokenHeadConfig:
    """The head of token vectors.

    dim            dimensions of the vectors
    weighted       query vectors get a learned length, by which their tokens count in MaxSim
    terms          query vectors are also multiplied by a fixed weight of their token id (its idf), so that rare words
                   count more from the start
    pooled_power   above 0, document tokens get weights for pooling: the fixed weight to this power times a learned one
    """

    dim: int = 128
    weighted: bool = True
    terms: bool = False
    pooled_power: float = 0.0


class TokenHead(nn.Module):
    """Hidden states [B, L, W] and ids [B, L] -> vectors f32 [B, L, dim]: a linear map, normalised.

    Query vectors are then multiplied by weights: softplus of a linear function of the hidden state, 1 at the start, so
    that function words can count less, and the fixed weight of the token id in `terms` f32 [V]. Document vectors stay
    at unit length; `pooling_weights` weights their tokens in CRISP's means.
    """

    terms: Tensor | None

    def __init__(self, width: int, config: TokenHeadConfig, vocabulary: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, config.dim, bias=False)
        self.weigh = nn.Linear(width, 1) if config.weighted else None
        if self.weigh is not None:
            nn.init.zeros_(self.weigh.weight)
            nn.init.constant_(self.weigh.bias, _UNIT_SOFTPLUS)
        self.power = config.pooled_power
        self.count = nn.Linear(width, 1) if config.pooled_power else None
        if self.count is not None:
            nn.init.zeros_(self.count.weight)
            nn.init.constant_(self.count.bias, _UNIT_SOFTPLUS)
        self.register_buffer("terms", torch.ones(vocabulary) if config.terms else None)

    def pooling_weights(self, hidden: Tensor, ids: Tensor) -> Tensor | None:
        """Weights f32 [B, L] > 0 of document tokens; None without pooled_power."""
        if self.count is None:
            return None
        weights = F.softplus(self.count(hidden)).squeeze(-1)
        if self.terms is not None:
            weights = weights * self.terms[ids] ** self.power
        return weights.float().clamp_min(MIN_TOKEN_WEIGHT)

    def forward(self, hidden: Tensor, ids: Tensor, *, query: bool) -> Tensor:
        vectors = F.normalize(self.project(hidden), dim=-1)
        if query and self.weigh is not None:
            vectors = vectors * F.softplus(self.weigh(hidden))
        if query and self.terms is not None:
            vectors = vectors * self.terms[ids].unsqueeze(-1)
        return vectors


@dataclass(frozen=True, kw_only=True)
class CrossHeadConfig:
    """The head of a cross-encoder.

    interaction adds to the score of the first token the best matches of the query's tokens among the document's (as in
    CEDR, arXiv 1904.07094). It ranks before any training and needs less data. dim is the width of the matched vectors.
    """

    dim: int = 128
    interaction: bool = True


class CrossHead(nn.Module):
    """Hidden states [B, L, W] of joined pairs -> scores f32 [B]."""

    def __init__(self, width: int, config: CrossHeadConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.project = nn.Linear(width, config.dim, bias=False) if config.interaction else None
        if self.project is not None:
            self.weigh = nn.Linear(width, 1)
            nn.init.zeros_(self.weigh.weight)
            nn.init.constant_(self.weigh.bias, _UNIT_SOFTPLUS)
            self.gains = nn.Parameter(torch.tensor([10.0, 3.0]))  # of the best cosine, of an exact token match

    def forward(self, hidden: Tensor, ids: Tensor, mask: Tensor, segments: Tensor, special: Tensor) -> Tensor:
        """ids, mask, segments i64 [B, L] (0 query, 1 document); special bool [B, L] marks [CLS] and [SEP]."""
        scores: Tensor = self.outer(F.gelu(self.inner(hidden[:, 0]))).squeeze(-1)
        if self.project is None:
            return scores
        content = (mask > 0) & ~special
        query, document = content & (segments == 0), content & (segments > 0)
        vectors = F.normalize(self.project(hidden), dim=-1)
        cosines = (vectors @ vectors.transpose(1, 2)).masked_fill(~document[:, None, :], -1.0).amax(dim=-1)
        same = ((ids[:, :, None] == ids[:, None, :]) & document[:, None, :]).any(dim=-1)
        weights = F.softplus(self.weigh(hidden)).squeeze(-1) * query
        matches = self.gains[0] * cosines + self.gains[1] * same
        return scores + (weights * matches).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-6)


@dataclass(frozen=True, kw_only=True)
class SparseHeadConfig:
    """The head of sparse weights.

    double_log    activation log(1 + log(1 + relu)) instead of log(1 + relu)
    scale, bias   initial values of the logits' scale and bias
    """

    double_log: bool = True
    scale: float = 8.0
    bias: float = -3.6


class SparseHead(nn.Module):
    """Hidden states [B, L, W] -> weights of terms (models/networks/stem_vocabulary.py), the sum of two parts.

    Present terms: BM25's saturation of the term's count times presence(h) >= 0, the largest over its positions. The
    presence is 1 before training, so that this part starts as BM25.
    Expansion to any vocabulary term t: the largest over positions p of scale * transform(h_p) . E_t + b_t, activated
    (double log, arXiv 2504.14839). E_t is the vector of the word on its own, so that related terms start near a
    positive weight, where they get a gradient.
    `idf` f32 [V + 1] weights query terms (arXiv 2411.04403) and is fixed before training; its last entry is for terms
    outside the vocabulary.
    """

    embeddings: Tensor
    names: Tensor
    idf: Tensor

    def __init__(self, width: int, vocabulary: int, dim: int, config: SparseHeadConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(width, dim)
        nn.init.zeros_(self.transform.bias)
        with torch.no_grad():
            self.transform.weight.mul_(0.1)
            self.transform.weight[:, width - dim :] += torch.eye(dim)
        self.register_buffer("embeddings", torch.zeros(vocabulary, dim))
        self.register_buffer("names", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("idf", torch.ones(vocabulary + 1))
        self.bias = nn.Parameter(torch.full((vocabulary,), config.bias))
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.presence = nn.Linear(width, 1)
        nn.init.zeros_(self.presence.weight)
        nn.init.constant_(self.presence.bias, _UNIT_SOFTPLUS)
        self.double_log = config.double_log

    def forward(self, hidden: Tensor, mask: Tensor, terms: Tensor | None = None) -> Tensor:
        """Expansion weights [B, V] of the vocabulary, or [B, n] of terms i64 [n], 0 outside the vocabulary."""
        size = len(self.bias)
        chosen = slice(None) if terms is None else terms.clamp(max=max(size - 1, 0))
        table, bias = self.embeddings[chosen], self.bias[chosen]
        states = self.scale * self.transform(hidden)
        lowest = torch.finfo(states.dtype).min
        best = (states @ table.T).masked_fill(mask[:, :, None] == 0, lowest).amax(dim=1) + bias
        weights = torch.log1p(torch.relu(best))
        weights = torch.log1p(weights) if self.double_log else weights
        return weights if terms is None else weights * (terms < size)

    def present(self, hidden: Tensor, at: Tensor, saturation: Tensor, terms: Tensor) -> Tensor:
        """Weights [B, n] of terms i64 [n], ascending, from the words present in the texts.

        at i64 [B, L] is the term that begins at a token (-1: none), saturation f32 [B, L] BM25's saturation of its
        count.
        """
        weights = saturation * F.softplus(self.presence(hidden)).squeeze(-1)
        columns = torch.searchsorted(terms, at).clamp(max=len(terms) - 1)
        weights = weights.masked_fill((at < 0) | (terms[columns] != at), 0.0)
        return weights.new_zeros((len(at), len(terms))).scatter_reduce(1, columns, weights, "amax")

    def query_weights(self, terms: Tensor) -> Tensor:
        """Weights f32 [n] of query terms i64 [n], for one occurrence each."""
        return self.idf[terms.clamp(max=len(self.bias))]
