"""Job `sparse`: inference-free learned sparse retrieval (arXiv 2411.04403, 2504.14839)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from chamfer.models.networks.checkpoint import Description, describe, parts_of
from chamfer.models.networks.heads import SparseHead, SparseHeadConfig
from chamfer.models.networks.stem_vocabulary import PlacedTerms, TermConfig, Terms, known_terms
from chamfer.models.networks.transformer import MINI
from chamfer.models.training.loop.feature_cache import StateReader, States
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Draw, Student, in_batch, in_order, micro_batches
from chamfer.models.training.losses import sparsity
from chamfer.models.training.losses.contrastive import infonce
from chamfer.models.training.losses.distillation import ensemble, kl


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(Recipe):
    """KL from an ensemble of teachers of different kinds, a contrastive part, and FLOPS with a quadratic ramp.

    The score is sum over the query's terms of count * idf(t) * document weight; there is no query encoder.
    Stems in at least `least` training documents are known terms.
    vocabulary_sample n above 0 computes weights of the batch's query terms and of n drawn terms alone: the scores are
    exact, FLOPS is estimated without bias (its sum over the drawn terms times V / n). 0 computes all.
    flops_form: pooled over all documents, grouped by slot, or masked below flops_threshold non-zeros (needs all terms).
    """

    teachers: tuple[str, ...] = ("bm25", "dense")
    teacher_scale: float = 30.0
    teacher_weight: float = 1.0
    contrastive_weight: float = 0.1
    least: int = 1
    flops_weight: float = 0.02
    flops_ramp: float = 0.3
    flops_form: Literal["pooled", "grouped", "masked"] = "pooled"
    flops_threshold: int = 150
    vocabulary_sample: int = 2048
    head: SparseHeadConfig = field(default_factory=SparseHeadConfig)
    terms: TermConfig = field(default_factory=TermConfig)


class SparseStudent(Student):
    """A sparse head; the backbone learns only with an adapter. Its terms come from the documents, or from `start`."""

    kind = "sparse"
    recipe: SparseRecipe
    head: SparseHead

    def __init__(self, recipe: SparseRecipe) -> None:
        super().__init__(recipe)
        self.read = StateReader(self.tower, self.tokenizer, recipe.fit.micro_tokens)
        self.steps = 1
        self._placed: dict[str, PlacedTerms] = {}
        self._set(*known_terms((), recipe.terms.language, recipe.least))

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.teachers

    def begin(self, folder: Path) -> None:
        names = parts_of(folder, describe(folder))[0]["names"]
        self._set(names.numpy(), np.zeros(len(names) + 1, dtype=np.float32), [])
        super().begin(folder)

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        self.steps = steps
        if not len(self.head.names):
            self._set(*known_terms(documents, self.recipe.terms.language, self.recipe.least))

    def description(self) -> Description:
        own = super().description()
        return replace(own, head={**own.head, "terms": asdict(self.recipe.terms)})

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        recipe = self.recipe
        device = self.head.idf.device
        asked = [self.terms.query(draw.query) for draw in draws]
        drawn = self._drawn(step)
        terms = torch.from_numpy(np.unique(np.concatenate([*(own for own, _ in asked), drawn]))).to(device)
        texts = [text for draw in draws for text in draw.texts]
        weights = self.weights(texts, terms)
        scores = torch.stack([self._query(own, counts, terms) for own, counts in asked]) @ weights.T
        each = len(draws[0].doc_ids)
        places, allowed = in_batch(draws, device)
        own_scores = scores.gather(1, places[:, None] + torch.arange(each, device=device))
        taught = torch.tensor([draw.teachers for draw in draws], device=device).transpose(0, 1)
        sampled = weights[:, torch.isin(terms, torch.from_numpy(drawn).to(device))]
        share = len(self.head.names) / max(sampled.shape[1], 1)
        ramp = sparsity.ramp(recipe.flops_weight, step, int(recipe.flops_ramp * self.steps))
        return {
            "teachers": recipe.teacher_weight * kl(own_scores, ensemble(taught, recipe.teacher_scale)),
            "contrastive": recipe.contrastive_weight * infonce(scores, places, allowed),
            "flops": ramp * share * self._flops(sampled, each),
        }

    def weights(self, texts: Sequence[str], terms: Tensor) -> Tensor:
        """Weights f32 [N, n] of terms i64 [n], ascending, in texts as the finished model gives them."""
        states = self.read(texts, self.recipe.document_tokens)
        placed = [self._place(text, row) for text, row in zip(texts, _rows(states), strict=True)]
        at = np.full(states.ids.shape, -1, dtype=np.int64)
        saturation = np.zeros(at.shape, dtype=np.float32)
        beyond = np.zeros((len(texts), len(terms)), dtype=np.float32)
        wanted = terms.cpu().numpy()
        for row, own in enumerate(placed):
            real = np.flatnonzero(own.at >= 0)
            at[row, real] = own.terms[own.at[real]]
            saturation[row, real] = own.saturation[own.at[real]]
            beyond[row] = _values_of(wanted, own.terms[own.unread], own.saturation[own.unread])
        device = states.hidden.device
        standing = self.head.standing(
            states.hidden, torch.from_numpy(at).to(device), torch.from_numpy(saturation).to(device), terms
        )
        out: Tensor = standing + torch.from_numpy(beyond).to(device) + self.head(states.hidden, states.mask, terms)
        return out

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        own, counts = self.terms.query(query)
        terms = torch.from_numpy(own).to(self.head.idf.device)
        return self.weights(texts, terms) @ self._query(own, counts, terms)

    def _query(self, own: np.ndarray, counts: np.ndarray, terms: Tensor) -> Tensor:
        """A query's weights f32 [n] of terms."""
        given = torch.from_numpy(_values_of(terms.cpu().numpy(), own, counts)).to(terms.device)
        return given * self.head.asked(terms)

    def _place(self, text: str, ids: list[int]) -> PlacedTerms:
        if text not in self._placed:
            self._placed[text] = self.terms.document(text, ids, self.tokenizer)
        return self._placed[text]

    def _set(self, names: np.ndarray, idf: np.ndarray, words: Sequence[Mapping[str, int]]) -> None:
        """A new head over these terms; words[t] on their own, by how often each occurs, give the vector of term t."""
        dim = self.tower.widths[-1]
        self.head = SparseHead(sum(self.tower.widths), len(names), dim, self.recipe.head).to(
            self.tower.vocabulary.device
        )
        self.head.names.copy_(torch.from_numpy(names))
        self.head.idf.copy_(torch.from_numpy(idf))
        if words:
            self.head.embeddings.copy_(self._term_vectors(words))
        self.terms = Terms(names, self.recipe.terms)
        self._placed.clear()

    def _term_vectors(self, words: Sequence[Mapping[str, int]]) -> Tensor:
        """f32 [V, dim], unit length: the mean of the vectors of a term's words."""
        distinct = {word: place for place, word in enumerate(dict.fromkeys(word for own in words for word in own))}
        vectors = self._word_vectors(list(distinct))
        pairs = [(t, distinct[word], count) for t, own in enumerate(words) for word, count in own.items()]
        terms, places, counts = (torch.tensor(column, device=vectors.device) for column in zip(*pairs, strict=True))
        sums = vectors.new_zeros((len(words), vectors.shape[1]))
        return torch.nn.functional.normalize(sums.index_add_(0, terms, vectors[places] * counts[:, None]), dim=-1)

    @torch.no_grad()
    def _word_vectors(self, words: Sequence[str]) -> Tensor:
        """Means of the last layer f32 [V, dim], unit length, mapped as the last of the features is."""
        ids = self.tokenizer(words, self.recipe.document_tokens).ids
        device = self.tower.vocabulary.device
        batches = micro_batches(ids, self.recipe.document_tokens, self.recipe.fit.micro_tokens, self.tokenizer.pad_id)
        means = []
        for _, padded, mask in batches:
            hidden = self.tower.transformer(input_ids=padded.to(device), attention_mask=mask.to(device))
            shares = (mask / mask.sum(dim=1, keepdim=True)).to(device)
            means.append((hidden.last_hidden_state.float() * shares[:, :, None]).sum(dim=1))
        vectors = torch.nn.functional.normalize(in_order(means, [rows for rows, _, _ in batches]), dim=-1)
        if self.tower.features[-1] == MINI:
            vectors = torch.nn.functional.normalize(vectors @ self.tower.projection, dim=-1)
        return vectors

    def _drawn(self, step: int) -> np.ndarray:
        n, size = self.recipe.vocabulary_sample, len(self.head.names)
        if not 0 < n < size:
            return np.arange(size)
        return np.random.default_rng((self.recipe.fit.seed, 1, step)).choice(size, size=n, replace=False)

    def _flops(self, weights: Tensor, slots: int) -> Tensor:
        if self.recipe.flops_form == "masked":
            return sparsity.masked_flops(weights, self.recipe.flops_threshold)
        if self.recipe.flops_form == "grouped":
            return sparsity.grouped_flops(weights.view(-1, slots, weights.shape[1]).transpose(0, 1))
        return sparsity.flops(weights)


def _rows(states: States) -> list[list[int]]:
    """The token ids of each text."""
    lengths = states.mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(states.ids.tolist(), lengths, strict=True)]


def _values_of(wanted: np.ndarray, terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """f32 [n]: the value of every wanted term (both ascending), 0 where it is not among `terms`."""
    out = np.zeros(len(wanted), dtype=np.float32)
    if len(wanted):
        places = np.searchsorted(wanted, terms).clip(max=len(wanted) - 1)
        there = wanted[places] == terms
        out[places[there]] = values[there]
    return out
