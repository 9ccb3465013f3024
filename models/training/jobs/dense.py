"""Job `dense`: one vector per text, from in-batch and mined negatives or against a frozen bank of documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import Description
from chamfer.models.training.loop.draws import Draw, in_batch
from chamfer.models.training.loop.gradient_cache import cached
from chamfer.models.training.loop.micro_batches import in_order, micro_batches
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Student
from chamfer.models.training.losses.contrastive import infonce, matryoshka, mix_list, mix_pairs, unit


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(Recipe):
    """InfoNCE over all documents of the batch.

    temperature, focal_gamma   of InfoNCE; focal_gamma 0 is no focal weight
    gradient_cache             whether gradients are cached (GradCache, arXiv 2101.06983), so that memory does not bound
                               the batch; works in one process
    mixed_pairs, mixed_list    add mixes of a query's own mined negatives to its denominator: so many of pairs, and one
                               of all with mix_temperature (KaLM-V2, arXiv 2506.20923). They make false negatives harder
                               too, so filter those first.
    matryoshka_dims, matryoshka_weights   prefixes of Matryoshka embeddings; none: the whole vector
    bank                       documents are encoded once by the untrained model, and only queries are trained, each
                               against the whole bank (second stage of SPN4CIR); the finished model adapts queries alone
    """

    temperature: float = 0.05
    focal_gamma: float = 0.0
    gradient_cache: bool = True
    mixed_pairs: int = 0
    mixed_list: bool = False
    mix_temperature: float = 0.1
    matryoshka_dims: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()
    bank: bool = False

    RENAMED: ClassVar[dict[str, str]] = {
        **Recipe.RENAMED,
        "gamma": "focal_gamma",
        "cached": "gradient_cache",
        "dims": "matryoshka_dims",
        "dim_weights": "matryoshka_weights",
    }

    def __post_init__(self) -> None:
        if len(self.matryoshka_dims) != len(self.matryoshka_weights):
            raise InvalidInput(
                f"{len(self.matryoshka_dims)} matryoshka_dims and {len(self.matryoshka_weights)} matryoshka_weights; "
                "expected one weight for each"
            )
        if not self.adapter.rank:
            raise InvalidInput("job dense trains an adapter; set adapter.rank above 0")


class DenseStudent(Student):
    """An encoder whose vector is the mean of the last hidden states over real tokens."""

    kind = "dense"
    recipe: DenseRecipe

    def __init__(self, recipe: DenseRecipe) -> None:
        super().__init__(recipe)
        self.head = torch.nn.Identity()
        self._bank = torch.empty(0)
        self._row_of: dict[str, int] = {}

    @property
    def single_process(self) -> bool:
        """See Learner; chamfer.models.training.loop.gradient_cache says why."""
        return self.recipe.gradient_cache

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        """With a bank: encodes every distinct document. The adapter starts at zero, so this is the untrained model."""
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
        positives, allowed = in_batch(draws, queries.device)
        rng = torch.Generator().manual_seed(self.recipe.fit.seed * 1_000_003 + step)

        def loss(q: Tensor, d: Tensor) -> Tensor:
            return self._in_batch(q, d, positives, allowed, rng)

        if not self.recipe.matryoshka_dims:
            return {"contrastive": loss(unit(queries), unit(documents))}
        dims, weights = self.recipe.matryoshka_dims, self.recipe.matryoshka_weights
        return {"contrastive": matryoshka(queries, documents, dims, weights, loss)}

    def encode(self, texts: Sequence[str], limit: int) -> Tensor:
        """Means f32 [N, H], not normalised, in the order of the texts."""
        ids = self.tokenizer(texts, limit).ids
        device = next(self.parameters()).device
        batches = micro_batches(ids, limit, self.recipe.fit.micro_batch_tokens, self.tokenizer.pad_id)
        rows = [batch_rows for batch_rows, _, _ in batches]
        calls = [(part.to(device), mask.to(device)) for _, part, mask in batches]
        if self.recipe.gradient_cache and self.training:
            return in_order([cached(self._mean, calls)], rows)
        return in_order([self._mean(*call) for call in calls], rows)

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        vector = unit(self.encode([query], self.recipe.query_tokens))[0]
        if self.recipe.bank:
            return (self._bank[[self._row_of[text] for text in texts]] @ vector).float()
        return (unit(self.encode(texts, self.recipe.document_tokens)) @ vector).float()

    def description(self) -> Description:
        return replace(super().description(), adapted="queries" if self.recipe.bank else "both")

    def _mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.tower(ids, mask).float()
        weights = mask[:, :, None].float()
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def _in_batch(
        self, queries: Tensor, documents: Tensor, positives: Tensor, allowed: Tensor, rng: torch.Generator
    ) -> Tensor:
        n_candidates = len(documents) // len(queries)
        scores = queries @ documents.T
        mixes = self._mixes(queries, documents.view(len(queries), n_candidates, -1)[:, 1:], rng)
        if mixes is not None:
            scores = torch.cat([scores, torch.einsum("bd,bpd->bp", queries, mixes)], dim=1)
            allowed = torch.cat([allowed, allowed.new_ones(mixes.shape[:2])], dim=1)
        return infonce(scores / self.recipe.temperature, positives, allowed, self.recipe.focal_gamma)

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
        return infonce(scores, rows, None, self.recipe.focal_gamma)
