"""The trained parts above a tower, in training and inference: token vectors, sparse weights, scores of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class TokenHeadConfig:
    """dim of the vectors. `weighted` lets a query vector's length say how much the token counts; `terms` multiplies
    it by a weight of the token's term, fixed before training, so that rare words count from the start."""

    dim: int = 128
    weighted: bool = True
    terms: bool = False


class TokenHead(nn.Module):
    """Hidden states [B, L, W] and ids [B, L] -> vectors [B, L, dim]: a linear map, normalised; a query's times weights.

    The weight is softplus of a linear function of the hidden state, 1 at the start: a query's function words may
    then count less, and CRISP's means are means by weight. Documents stay at unit length. `terms` f32 [V].
    """

    terms: Tensor | None

    def __init__(self, width: int, config: TokenHeadConfig, vocabulary: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, config.dim, bias=False)
        self.weigh = nn.Linear(width, 1) if config.weighted else None
        if self.weigh is not None:
            nn.init.zeros_(self.weigh.weight)
            nn.init.constant_(self.weigh.bias, 0.5413)  # softplus(0.5413) = 1
        self.register_buffer("terms", torch.ones(vocabulary) if config.terms else None)

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
    """double_log: log(1 + log(1 + relu)) rather than log(1 + relu)."""

    double_log: bool = True


class SparseHead(nn.Module):
    """Hidden states [B, L, W] -> term weights [B, V >= 0]: the maximum over positions of the logits, activated.

    The logit of term t at position p is scale * transform(h_p) . E_t + b_t, with the backbone's word embeddings E at
    unit length, plus presence(h_p) >= 0 if the token at p is t. Where the features begin with `words`, transform starts
    as the token's own embedding: terms with like embeddings (other forms of a word) then start near a weight above 0,
    where they get a gradient, all others below, and a backbone without a language model head need not start from noise.
    `idf` f32 [V] is the weight of a query's terms, fixed before training.
    """

    embeddings: Tensor
    idf: Tensor

    def __init__(self, width: int, vocabulary: Tensor, config: SparseHeadConfig) -> None:
        super().__init__()
        size, hidden = vocabulary.shape
        self.transform = nn.Linear(width, hidden)
        nn.init.zeros_(self.transform.bias)
        with torch.no_grad():
            self.transform.weight.mul_(0.1)
            self.transform.weight[:, :hidden] += torch.eye(hidden, min(width, hidden))
        self.register_buffer("embeddings", F.normalize(vocabulary.detach(), dim=-1), persistent=False)
        self.register_buffer("idf", torch.ones(size))
        self.bias = nn.Parameter(torch.full((size,), -6.0))
        self.scale = nn.Parameter(torch.tensor(10.0))
        last = nn.Linear(128, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 1.0)
        self.presence = nn.Sequential(nn.Linear(width, 128), nn.GELU(), last, nn.Softplus())
        self.double_log = config.double_log

    def forward(self, hidden: Tensor, ids: Tensor, mask: Tensor, terms: Tensor | None = None) -> Tensor:
        """Weights [B, V], or [B, n] of ascending terms i64 [n] alone. Positions with mask 0 count nothing."""
        states = self.scale * self.transform(hidden)
        table, bias = (self.embeddings, self.bias) if terms is None else (self.embeddings[terms], self.bias[terms])
        lowest = torch.finfo(states.dtype).min
        best = (states @ table.T).masked_fill(mask[:, :, None] == 0, lowest).amax(dim=1) + bias
        own = (states * self.embeddings[ids]).sum(dim=-1) + self.bias[ids] + self.presence(hidden).squeeze(-1)
        places, asked = ids, mask > 0
        if terms is not None:
            places = torch.searchsorted(terms, ids).clamp(max=len(terms) - 1)
            asked = asked & (terms[places] == ids)
        own = own.to(best.dtype).masked_fill(~asked, lowest)
        activated = torch.log1p(torch.relu(best.scatter_reduce(1, places, own, "amax")))
        return torch.log1p(activated) if self.double_log else activated
