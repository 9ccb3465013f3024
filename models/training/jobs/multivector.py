"""Job `multivector`: token vectors for MaxSim, pooled as they will be pooled (CRISP)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.heads import TokenHead, TokenHeadConfig
from chamfer.models.networks.maxsim import maxsim
from chamfer.models.networks.token_pooling import PoolingRules, parse_pooling
from chamfer.models.networks.transformer import MINI
from chamfer.models.training.loop.differentiable_pooling import pool_batch
from chamfer.models.training.loop.feature_cache import StateReader
from chamfer.models.training.loop.lora import shrink
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Draw, Student, in_batch
from chamfer.models.training.loop.token_idf import idf
from chamfer.models.training.losses.contrastive import infonce
from chamfer.models.training.losses.distillation import ensemble, kl


@dataclass(frozen=True, kw_only=True)
class MultivectorRecipe(Recipe):
    """Contrastive loss over all documents of the batch, and KL from the teachers over each query's own.

    poolings are taken in turn, a step each: names of chamfer.models.networks.token_pooling, "" for all vectors.
    temperature divides the MaxSim score; teacher_scale multiplies the normalised mean of the teachers (columns of the
    groups). words is the weight at which word embeddings begin beside `mini`'s vectors. With head.terms a query token
    weighs its term's idf over the documents, the largest being 1, to the `power`, and the tokens that frame a text
    `frame`. learnt_share below 1 leaves the finished model so far on the way from the untrained weights to those
    learnt, which is often the better place for texts of other kinds (WiSE-FT, arXiv 2109.01903).
    """

    poolings: tuple[str, ...] = ("", "c8x32")
    temperature: float = 0.5
    teachers: tuple[str, ...] = ()
    teacher_scale: float = 10.0
    teacher_weight: float = 1.0
    contrastive_weight: float = 1.0
    words: float = 0.5
    power: float = 0.5
    frame: float = 0.2
    learnt_share: float = 1.0
    head: TokenHeadConfig = field(default_factory=TokenHeadConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.learnt_share <= 1:
            raise InvalidInput(f"learnt_share is {self.learnt_share}, expected 0 (nothing is left of it) to 1 (all)")


class MultivectorStudent(Student):
    """A token head; the backbone learns only with an adapter."""

    kind = "tokens"
    recipe: MultivectorRecipe
    head: TokenHead

    def __init__(self, recipe: MultivectorRecipe) -> None:
        super().__init__(recipe)
        self.head = TokenHead(sum(self.tower.widths), recipe.head, len(self.tower.vocabulary))
        self._rules = [parse_pooling(name) if name else None for name in recipe.poolings]
        self.read = StateReader(self.tower, self.tokenizer, recipe.fit.micro_tokens)
        self._start()
        self._untrained = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        del steps
        if self.head.terms is not None:
            importance = torch.from_numpy(idf(self.tokenizer, documents, len(self.head.terms)))
            self.head.terms.copy_((importance / importance.max()) ** self.recipe.power)
            self.head.terms[list(self.tokenizer.special_ids)] = self.recipe.frame

    def finish(self) -> None:
        share = self.recipe.learnt_share
        if share == 1:
            return
        shrink(self.tower.transformer, share)
        for name, tensor in self.head.state_dict().items():
            if name != "terms":
                tensor.lerp_(self._untrained[name].to(tensor), 1 - share)

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.teachers

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        rules = self._rules[step % len(self._rules)]
        queries, query_mask = self.encode([draw.query for draw in draws], rules, query=True)
        documents, document_mask = self.encode([text for draw in draws for text in draw.texts], rules, query=False)
        scores = maxsim(queries, query_mask, documents, document_mask) / self.recipe.temperature
        places, allowed = in_batch(draws, scores.device)
        parts = {"contrastive": self.recipe.contrastive_weight * infonce(scores, places, allowed)}
        if self.recipe.teachers:
            own = scores.gather(1, places[:, None] + torch.arange(len(draws[0].doc_ids), device=scores.device))
            taught = torch.tensor([draw.teachers for draw in draws], device=scores.device).transpose(0, 1)
            parts["teachers"] = self.recipe.teacher_weight * kl(own, ensemble(taught, self.recipe.teacher_scale))
        return parts

    def encode(self, texts: Sequence[str], rules: PoolingRules | None, *, query: bool) -> tuple[Tensor, Tensor]:
        """(vectors f32 [N, m, D], mask bool [N, m]) of texts, pooled by the rule of their side."""
        limit = self.recipe.query_tokens if query else self.recipe.document_tokens
        states = self.read(texts, limit)
        vectors = self.head(states.hidden, states.ids, query=query).float()
        if rules is None:
            return vectors, states.mask > 0
        rule = rules.query if query else rules.document
        counts = None if query else self.head.counts(states.hidden, states.ids)
        return pool_batch(vectors, states.mask, rule, normalised=rules.normalised, weights=counts)

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        """MaxSim with the last of the poolings."""
        queries = self.encode([query], self._rules[-1], query=True)
        return maxsim(*queries, *self.encode(texts, self._rules[-1], query=False))[0]

    def _start(self) -> None:
        """Not from noise: token vectors of `mini` pass as they are, words through an orthonormal map."""
        weight, start = self.head.project.weight.data, 0
        for name, width in zip(self.tower.features, self.tower.widths, strict=True):
            block = weight[:, start : start + width]
            start += width
            if name == MINI and weight.shape[0] == width:
                block.copy_(torch.eye(width))
            elif name == MINI or weight.shape[0] > width:
                continue
            else:
                share = self.recipe.words if name == "words" else 1.0
                block.copy_(share * torch.linalg.qr(torch.randn(width, len(weight))).Q.T)
