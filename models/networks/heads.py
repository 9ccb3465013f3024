"""The trained parts above a tower, in training and inference: token vectors, sparse weights, scores of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.models.networks.token_pooling import LEAST_WEIGHT


@dataclass(frozen=True, kw_only=True)
class TokenHeadConfig:
    """dim of the vectors. `weighted` lets a query vector's length say how much the token counts; `terms` multiplies
    it by a weight of the token's term, fixed before training, so that rare words count from the start. pooled_power
    above 0 gives document tokens weights where they are pooled: the term's to that power, times a learnt factor."""

    dim: int = 128
    weighted: bool = True
    terms: bool = False
    pooled_power: float = 0.0


class TokenHead(nn.Module):
    """Hidden states [B, L, W] and ids [B, L] -> vectors [B, L, dim]: a linear map, normalised; a query's times weights.

    The weight is softplus of a linear function of the hidden state, 1 at the start: a query's function words may
    then count less, and CRISP's means are means by weight. Documents stay at unit length; `counts` is what their tokens
    count where they are pooled. `terms` f32 [V].
    """

    terms: Tensor | None

    def __init__(self, width: int, config: TokenHeadConfig, vocabulary: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, config.dim, bias=False)
        self.weigh = nn.Linear(width, 1) if config.weighted else None
        if self.weigh is not None:
            nn.init.zeros_(self.weigh.weight)
            nn.init.constant_(self.weigh.bias, 0.5413)  # softplus(0.5413) = 1
        self.power = config.pooled_power
        self.count = nn.Linear(width, 1) if config.pooled_power else None
        if self.count is not None:
            nn.init.zeros_(self.count.weight)
            nn.init.constant_(self.count.bias, 0.5413)
        self.register_buffer("terms", torch.ones(vocabulary) if config.terms else None)

    def counts(self, hidden: Tensor, ids: Tensor) -> Tensor | None:
        """Weights f32 [B, L] > 0 of document tokens; None where they have none."""
        if self.count is None:
            return None
        weights = F.softplus(self.count(hidden)).squeeze(-1)
        if self.terms is not None:
            weights = weights * self.terms[ids] ** self.power
        return weights.float().clamp_min(LEAST_WEIGHT)

    def forward(self, hidden: Tensor, ids: Tensor, *, query: bool) -> Tensor:
        vectors = F.normalize(self.project(hidden), dim=-1)
        if query and self.weigh is not None:
            vectors = vectors * F.softplus(self.weigh(hidden))
        if query and self.terms is not None:
            vectors = vectors * self.terms[ids].unsqueeze(-1)
        return vectors


@dataclass(frozen=True, kw_only=True)
class CrossHeadConfig:
    """interaction adds to the score of the first token the best matches of the query's tokens among the document's
    (as in CEDR, arXiv 1904.07094): a start that ranks before training, and less data to learn from."""

    dim: int = 128
    interaction: bool = True


class CrossHead(nn.Module):
    """Hidden states [B, L, W] of joined pairs -> scores [B]."""

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
            nn.init.constant_(self.weigh.bias, 0.5413)
            self.gains = nn.Parameter(torch.tensor([10.0, 3.0]))  # of the best cosine, of the same token being there

    def forward(self, hidden: Tensor, ids: Tensor, mask: Tensor, segments: Tensor, special: Tensor) -> Tensor:
        """ids, mask, segments i64 [B, L]; special bool [B, L] marks the tokens that frame a pair."""
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
    """double_log: log(1 + log(1 + relu)) rather than log(1 + relu). scale and bias: where the logits start."""

    double_log: bool = True
    scale: float = 8.0
    bias: float = -3.6


class SparseHead(nn.Module):
    """Hidden states [B, L, W] -> weights of terms (chamfer.models.networks.stem_vocabulary), in two parts that are
    added.

    A word that stands there: BM25's saturation of its count times presence(h) >= 0, the largest among its places; the
    presence is 1 before training, so this part starts as BM25's. Any known term: the largest over places p of the
    logits scale * transform(h_p) . E_t + b_t, activated (double log, arXiv 2504.14839); E_t is the vector of the word
    on its own, which makes terms of like meaning start near a weight above 0, where they get a gradient.
    `idf` f32 [V + 1] weighs a query's terms (arXiv 2411.04403), fixed before training; the last is for unknown ones.
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
        nn.init.constant_(self.presence.bias, 0.5413)  # softplus(0.5413) = 1
        self.double_log = config.double_log

    def forward(self, hidden: Tensor, mask: Tensor, terms: Tensor | None = None) -> Tensor:
        """Weights [B, V] of the known terms' logits, or [B, n] of these terms i64 [n], 0 for unknown ones."""
        known = len(self.bias)
        own = slice(None) if terms is None else terms.clamp(max=max(known - 1, 0))
        table, bias = self.embeddings[own], self.bias[own]
        states = self.scale * self.transform(hidden)
        lowest = torch.finfo(states.dtype).min
        best = (states @ table.T).masked_fill(mask[:, :, None] == 0, lowest).amax(dim=1) + bias
        weights = torch.log1p(torch.relu(best))
        weights = torch.log1p(weights) if self.double_log else weights
        return weights if terms is None else weights * (terms < known)

    def standing(self, hidden: Tensor, at: Tensor, saturation: Tensor, terms: Tensor) -> Tensor:
        """Weights [B, n] of terms i64 [n], ascending, by the words that stand there: at i64 [B, L] names the term that
        a token begins (-1: none), saturation f32 [B, L] its own."""
        weights = saturation * F.softplus(self.presence(hidden)).squeeze(-1)
        places = torch.searchsorted(terms, at).clamp(max=len(terms) - 1)
        weights = weights.masked_fill((at < 0) | (terms[places] != at), 0.0)
        return weights.new_zeros((len(at), len(terms))).scatter_reduce(1, places, weights, "amax")

    def asked(self, terms: Tensor) -> Tensor:
        """What a query's terms i64 [n] weigh, each once."""
        return self.idf[terms.clamp(max=len(self.bias))]
