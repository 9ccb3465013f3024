"""Job `dense`: one vector a text, from in-batch and mined negatives or against a frozen bank of documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import Description
from chamfer.models.training.loop.gradient_cache import cached
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Draw, Student, in_batch, in_order, micro_batches
from chamfer.models.training.losses.contrastive import infonce, matryoshka, mix_list, mix_pairs, unit


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(Recipe):
    """InfoNCE over all documents of the batch, with temperature and focal weight gamma (0: none).

    cached: gradients are cached (GradCache, arXiv 2101.06983), so that the batch is bounded by time, not memory.
    mixed_pairs and mixed_list add mixes of a query's own mined negatives to its denominator (KaLM-V2); they make false
    negatives harder too, so filter first. dims and dim_weights are Matryoshka's prefixes (none: the whole vector).
    bank: documents are encoded once by the untrained model, and only queries learn, each against the whole bank
    (SPN4CIR's second stage); the finished model then adapts queries alone.
    """

    temperature: float = 0.05
    gamma: float = 0.0
    cached: bool = True
    mixed_pairs: int = 0
    mixed_list: bool = False
    mix_temperature: float = 0.1
    dims: tuple[int, ...] = ()
    dim_weights: tuple[float, ...] = ()
    bank: bool = False

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.dim_weights):
            raise InvalidInput(f"{len(self.dims)} dims and {len(self.dim_weights)} dim_weights; expected one for each")
        if not self.adapter.rank:
            raise InvalidInput("job dense trains an adapter; set adapter.rank above 0")


class DenseStudent(Student):
    """The mean of the last hidden states over real tokens."""

    kind = "dense"
    recipe: DenseRecipe

    def __init__(self, recipe: DenseRecipe) -> None:
        super().__init__(recipe)
        self.head = torch.nn.Identity()
        self._bank = torch.empty(0)
        self._row_of: dict[str, int] = {}

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        """With a bank: encodes every distinct document. The adapter starts as nothing, so this is the start model."""
        del steps
        if self.recipe.bank:
            texts = list(dict.fromkeys(documents))
            with torch.no_grad():
                self._bank = unit(self.encode(texts, self.recipe.document_tokens))
            self._row_of = {text: row for row, text in enumerate(texts)}

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        queries = self.encode([draw.query for draw in draws], self.recipe.query_tokens)
        if self.recipe.bank:
            return {"bank": self._bank_loss(queries, draws)}
        documents = self.encode([text for draw in draws for text in draw.texts], self.recipe.document_tokens)
        places, allowed = in_batch(draws, queries.device)
        rng = torch.Generator().manual_seed(self.recipe.fit.seed * 1_000_003 + step)

        def loss(q: Tensor, d: Tensor) -> Tensor:
            return self._in_batch(q, d, places, allowed, rng)

        if not self.recipe.dims:
            return {"contrastive": loss(unit(queries), unit(documents))}
        return {"contrastive": matryoshka(queries, documents, self.recipe.dims, self.recipe.dim_weights, loss)}

    def encode(self, texts: Sequence[str], limit: int) -> Tensor:
        """Means f32 [N, H], not normalised, in the order of the texts."""
        ids = self.tokenizer(texts, limit).ids
        device = next(self.parameters()).device
        batches = micro_batches(ids, limit, self.recipe.fit.micro_tokens, self.tokenizer.pad_id)
        rows = [own for own, _, _ in batches]
        calls = [(part.to(device), mask.to(device)) for _, part, mask in batches]
        if self.recipe.cached and self.training:
            return in_order([cached(self._mean, calls)], rows)
        return in_order([self._mean(*call) for call in calls], rows)

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        asked = unit(self.encode([query], self.recipe.query_tokens))
        if self.recipe.bank:
            return (self._bank[[self._row_of[text] for text in texts]] @ asked[0]).float()
        return (unit(self.encode(texts, self.recipe.document_tokens)) @ asked[0]).float()

    def description(self) -> Description:
        return replace(super().description(), adapted="queries" if self.recipe.bank else "both")

    def _mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.tower(ids, mask).float()
        weights = mask[:, :, None].float()
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def _in_batch(
        self, queries: Tensor, documents: Tensor, places: Tensor, allowed: Tensor, rng: torch.Generator
    ) -> Tensor:
        each = len(documents) // len(queries)
        scores = queries @ documents.T
        mixes = self._mixes(queries, documents.view(len(queries), each, -1)[:, 1:], rng)
        if mixes is not None:
            scores = torch.cat([scores, torch.einsum("bd,bpd->bp", queries, mixes)], dim=1)
            allowed = torch.cat([allowed, allowed.new_ones(mixes.shape[:2])], dim=1)
        return infonce(scores / self.recipe.temperature, places, allowed, self.recipe.gamma)

    def _mixes(self, queries: Tensor, negatives: Tensor, rng: torch.Generator) -> Tensor | None:
        parts = []
        pairs, m = self.recipe.mixed_pairs, negatives.shape[1]
        if pairs and m > 1:
            first = torch.randint(m, (len(queries), pairs), generator=rng)
            second = (first + 1 + torch.randint(m - 1, first.shape, generator=rng)) % m
            # Beta(2, 2) is the middle of three uniform draws.
            shares = torch.rand((3, *first.shape), generator=rng).median(dim=0).values
            device = negatives.device
            parts.append(mix_pairs(negatives, first.to(device), second.to(device), shares.to(device)))
        if self.recipe.mixed_list:
            parts.append(mix_list(queries, negatives, self.recipe.mix_temperature))
        return torch.cat(parts, dim=1) if parts else None

    def _bank_loss(self, queries: Tensor, draws: Sequence[Draw]) -> Tensor:
        scores = unit(queries) @ self._bank.to(queries.device).T / self.recipe.temperature
        rows = torch.tensor([self._row_of[draw.texts[0]] for draw in draws], device=scores.device)
        return infonce(scores, rows, None, self.recipe.gamma)
