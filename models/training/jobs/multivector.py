"""Job `multivector`: token vectors for MaxSim, trained under the poolings that they will be served with (CRISP)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.features import MINI, WORDS
from chamfer.models.networks.heads import TokenHead, TokenHeadConfig
from chamfer.models.networks.maxsim import maxsim
from chamfer.models.networks.token_pooling import PoolingRules, parse_pooling
from chamfer.models.training.loop.differentiable_pooling import pool_batch
from chamfer.models.training.loop.draws import Draw, in_batch, own_candidates, teacher_scores
from chamfer.models.training.loop.feature_cache import FeatureReader
from chamfer.models.training.loop.lora import scale_adapter
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Student
from chamfer.models.training.loop.token_idf import token_idf
from chamfer.models.training.losses.contrastive import infonce
from chamfer.models.training.losses.distillation import ensemble, kl


@dataclass(frozen=True, kw_only=True)
class MultivectorRecipe(Recipe):
    """Contrastive loss over all documents of the batch, and KL from the teachers over each query's own candidates.

    poolings               taken in turn, one per step (models/networks/token_pooling.py); "" keeps all vectors
    temperature            divides the MaxSim scores
    teachers               columns of the groups with the teachers' scores
    teacher_scale          multiplies the normalised mean of the teachers
    teacher_weight, contrastive_weight   of the two terms of the loss
    word_embedding_scale   initial weight of word embeddings (feature `words`) beside the vectors of `mini`
    query_idf_power        with head.terms, a query token is weighted by (idf / largest idf) to this power, idf taken
                           over the documents
    special_token_weight   with head.terms, the weight of special tokens
    wise_ft_alpha          interpolates the initial weights (0) and the trained weights (1) at the end, which often
                           serves other kinds of text better (WiSE-FT, arXiv 2109.01903)
    """

    poolings: tuple[str, ...] = ("", "c8x32")
    temperature: float = 0.5
    teachers: tuple[str, ...] = ()
    teacher_scale: float = 10.0
    teacher_weight: float = 1.0
    contrastive_weight: float = 1.0
    word_embedding_scale: float = 0.5
    query_idf_power: float = 0.5
    special_token_weight: float = 0.2
    wise_ft_alpha: float = 1.0
    head: TokenHeadConfig = field(default_factory=TokenHeadConfig)

    RENAMED: ClassVar[dict[str, str]] = {
        **Recipe.RENAMED,
        "words": "word_embedding_scale",
        "power": "query_idf_power",
        "frame": "special_token_weight",
        "learnt_share": "wise_ft_alpha",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.wise_ft_alpha <= 1:
            raise InvalidInput(f"wise_ft_alpha is {self.wise_ft_alpha}, expected 0 (initial) to 1 (trained weights)")


class MultivectorStudent(Student):
    """A token head; the backbone is trained only with an adapter."""

    kind = "tokens"
    recipe: MultivectorRecipe
    head: TokenHead

    def __init__(self, recipe: MultivectorRecipe) -> None:
        super().__init__(recipe)
        self.head = TokenHead(sum(self.tower.widths), recipe.head, len(self.tower.vocabulary))
        self._rules = [parse_pooling(name) if name else None for name in recipe.poolings]
        self.read = FeatureReader(self.tower, self.tokenizer, recipe.fit.micro_batch_tokens)
        self._initialise()
        self._initial = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        del steps
        if self.head.terms is not None:
            importance = torch.from_numpy(token_idf(self.tokenizer, documents, len(self.head.terms)))
            self.head.terms.copy_((importance / importance.max()) ** self.recipe.query_idf_power)
            self.head.terms[list(self.tokenizer.special_ids)] = self.recipe.special_token_weight

    def use_token_vectors(self, folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> None:
        """See Learner."""
        self.read.load_token_vectors(folder, documents, queries)

    def on_train_end(self) -> None:
        """Interpolates the initial and the trained weights."""
        alpha = self.recipe.wise_ft_alpha
        if alpha == 1:
            return
        scale_adapter(self.tower.transformer, alpha)
        for name, tensor in self.head.state_dict().items():
            if name != "terms":
                tensor.lerp_(self._initial[name].to(tensor), 1 - alpha)

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.teachers

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        rules = self._rules[step % len(self._rules)]
        queries, query_mask = self.encode([draw.query for draw in draws], rules, query=True)
        documents, document_mask = self.encode([text for draw in draws for text in draw.texts], rules, query=False)
        scores = maxsim(queries, query_mask, documents, document_mask) / self.recipe.temperature
        positives, allowed = in_batch(draws, scores.device)
        parts = {"contrastive": self.recipe.contrastive_weight * infonce(scores, positives, allowed)}
        if self.recipe.teachers:
            student = own_candidates(scores, positives, len(draws[0].doc_ids))
            teacher = ensemble(teacher_scores(draws, scores.device), self.recipe.teacher_scale)
            parts["teachers"] = self.recipe.teacher_weight * kl(student, teacher)
        return parts

    def encode(self, texts: Sequence[str], rules: PoolingRules | None, *, query: bool) -> tuple[Tensor, Tensor]:
        """(vectors f32 [N, m, D], mask bool [N, m]) of texts, pooled by the rule of their side, if any."""
        limit = self.recipe.query_tokens if query else self.recipe.document_tokens
        features = self.read(texts, limit)
        vectors = self.head(features.hidden, features.ids, query=query).float()
        if rules is None:
            return vectors, features.mask > 0
        rule = rules.query if query else rules.document
        weights = None if query else self.head.pooling_weights(features.hidden, features.ids)
        return pool_batch(vectors, features.mask, rule, normalised=rules.normalised, weights=weights)

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        """MaxSim under the last of the poolings."""
        queries = self.encode([query], self._rules[-1], query=True)
        return maxsim(*queries, *self.encode(texts, self._rules[-1], query=False))[0]

    def _initialise(self) -> None:
        """Starts from useful vectors: those of `mini` pass unchanged, other features through an orthonormal map."""
        weight, start = self.head.project.weight.data, 0
        for name, width in zip(self.tower.features, self.tower.widths, strict=True):
            block = weight[:, start : start + width]
            start += width
            if name == MINI and weight.shape[0] == width:
                block.copy_(torch.eye(width))
            elif name == MINI or weight.shape[0] > width:
                continue
            else:
                scale = self.recipe.word_embedding_scale if name == WORDS else 1.0
                block.copy_(scale * torch.linalg.qr(torch.randn(width, len(weight))).Q.T)
