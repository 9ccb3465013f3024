"""Job `sparse`: inference-free learned sparse retrieval (arXiv 2411.04403, 2504.14839)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from chamfer.core.types import F32, I64
from chamfer.models.networks.checkpoint import Description, open_checkpoint
from chamfer.models.networks.features import MINI
from chamfer.models.networks.heads import SparseHead, SparseHeadConfig
from chamfer.models.networks.stem_vocabulary import PlacedTerms, TermConfig, Terms, build_vocabulary
from chamfer.models.training.loop.draws import Draw, in_batch, own_candidates, teacher_scores
from chamfer.models.training.loop.feature_cache import FeatureReader, TokenFeatures
from chamfer.models.training.loop.micro_batches import in_order, micro_batches
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.student import Student
from chamfer.models.training.losses import sparsity
from chamfer.models.training.losses.contrastive import infonce
from chamfer.models.training.losses.distillation import ensemble, kl


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(Recipe):
    """KL from an ensemble of different teachers, a contrastive term, and FLOPS with a quadratic ramp.

    The score is the sum over the query's terms of count * idf * document weight; there is no query encoder.

    teachers            columns of the groups with the teachers' scores
    teacher_scale       multiplies the normalised mean of the teachers
    teacher_weight, contrastive_weight, flops_weight   of the three terms of the loss
    min_df              training documents in which a stem must occur to enter the vocabulary
    flops_ramp          fraction of the steps over which flops_weight grows to its value
    flops_form          pooled over all documents, grouped by candidate slot, or masked: documents with at most
                        flops_threshold non-zeros are exempt (needs all terms)
    vocabulary_sample   n > 0 computes the weights of the batch's query terms and of n sampled terms only: scores are
                        exact, FLOPS is an unbiased estimate (its sum over the sample times V / n). 0 computes all.
    """

    teachers: tuple[str, ...] = ("bm25", "dense")
    teacher_scale: float = 30.0
    teacher_weight: float = 1.0
    contrastive_weight: float = 0.1
    min_df: int = 1
    flops_weight: float = 0.02
    flops_ramp: float = 0.3
    flops_form: Literal["pooled", "grouped", "masked"] = "pooled"
    flops_threshold: int = 150
    vocabulary_sample: int = 2048
    head: SparseHeadConfig = field(default_factory=SparseHeadConfig)
    terms: TermConfig = field(default_factory=TermConfig)

    RENAMED: ClassVar[dict[str, str]] = {**Recipe.RENAMED, "least": "min_df"}


class SparseStudent(Student):
    """A sparse head; the backbone is trained only with an adapter. Its terms come from the documents or init_from."""

    kind = "sparse"
    recipe: SparseRecipe
    head: SparseHead

    def __init__(self, recipe: SparseRecipe) -> None:
        super().__init__(recipe)
        self.read = FeatureReader(self.tower, self.tokenizer, recipe.fit.micro_batch_tokens)
        self.steps = 1
        self._placed: dict[str, PlacedTerms] = {}
        self._set_vocabulary(*build_vocabulary((), recipe.terms.language, recipe.min_df))

    @property
    def teachers(self) -> Sequence[str]:
        return self.recipe.teachers

    def load_start(self, folder: Path) -> None:
        """See Learner."""
        names = open_checkpoint(folder).head.get("names", torch.zeros(0, dtype=torch.int64))
        self._set_vocabulary(names.numpy(), np.zeros(len(names) + 1, dtype=np.float32), [])
        super().load_start(folder)

    def use_token_vectors(self, folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> None:
        """See Learner."""
        self.read.load_token_vectors(folder, documents, queries)

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        self.steps = steps
        if not len(self.head.names):
            self._set_vocabulary(*build_vocabulary(documents, self.recipe.terms.language, self.recipe.min_df))

    def description(self) -> Description:
        description = super().description()
        return replace(description, head={**description.head, "terms": asdict(self.recipe.terms)})

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        recipe = self.recipe
        device = self.head.idf.device
        queries = [self.terms.query(draw.query) for draw in draws]
        sample = self._sampled_terms(step)
        terms = torch.from_numpy(np.unique(np.concatenate([*(numbers for numbers, _ in queries), sample]))).to(device)
        texts = [text for draw in draws for text in draw.texts]
        weights = self.weights(texts, terms)
        scores = torch.stack([self._query(numbers, counts, terms) for numbers, counts in queries]) @ weights.T
        n_candidates = len(draws[0].doc_ids)
        positives, allowed = in_batch(draws, device)
        student = own_candidates(scores, positives, n_candidates)
        teacher = ensemble(teacher_scores(draws, device), recipe.teacher_scale)
        sampled = weights[:, torch.isin(terms, torch.from_numpy(sample).to(device))]
        inverse_rate = len(self.head.names) / max(sampled.shape[1], 1)
        ramp = sparsity.ramp(recipe.flops_weight, step, int(recipe.flops_ramp * self.steps))
        return {
            "teachers": recipe.teacher_weight * kl(student, teacher),
            "contrastive": recipe.contrastive_weight * infonce(scores, positives, allowed),
            "flops": ramp * inverse_rate * self._flops(sampled, n_candidates),
        }

    def weights(self, texts: Sequence[str], terms: Tensor) -> Tensor:
        """Weights f32 [N, n] of terms i64 [n], ascending, in texts, as the finished model computes them."""
        features = self.read(texts, self.recipe.document_tokens)
        placed = [self._place(text, ids) for text, ids in zip(texts, _token_ids(features), strict=True)]
        at = np.full(features.ids.shape, -1, dtype=np.int64)
        saturation = np.zeros(at.shape, dtype=np.float32)
        truncated = np.zeros((len(texts), len(terms)), dtype=np.float32)
        wanted = terms.cpu().numpy()
        for row, text_terms in enumerate(placed):
            tokens = np.flatnonzero(text_terms.at >= 0)
            at[row, tokens] = text_terms.terms[text_terms.at[tokens]]
            saturation[row, tokens] = text_terms.saturation[text_terms.at[tokens]]
            beyond = text_terms.truncated
            truncated[row] = _values_of(wanted, text_terms.terms[beyond], text_terms.saturation[beyond])
        device = features.hidden.device
        present = self.head.present(
            features.hidden, torch.from_numpy(at).to(device), torch.from_numpy(saturation).to(device), terms
        )
        expansion = self.head(features.hidden, features.mask, terms)
        weights: Tensor = present + torch.from_numpy(truncated).to(device) + expansion
        return weights

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        numbers, counts = self.terms.query(query)
        terms = torch.from_numpy(numbers).to(self.head.idf.device)
        return self.weights(texts, terms) @ self._query(numbers, counts, terms)

    def _query(self, numbers: I64, counts: F32, terms: Tensor) -> Tensor:
        """A query's weights f32 [n] of terms i64 [n], from its own terms and their counts."""
        aligned = torch.from_numpy(_values_of(terms.cpu().numpy(), numbers, counts)).to(terms.device)
        return aligned * self.head.query_weights(terms)

    def _place(self, text: str, ids: list[int]) -> PlacedTerms:
        if text not in self._placed:
            self._placed[text] = self.terms.document(text, ids, self.tokenizer)
        return self._placed[text]

    def _set_vocabulary(self, names: I64, idf: F32, words: Sequence[Mapping[str, int]]) -> None:
        """A fresh head over these terms; the vector of term t is the weighted mean of those of words[t]."""
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
        """f32 [V, dim] at unit length: the weighted means of the vectors of each term's words."""
        row_of = {word: row for row, word in enumerate(dict.fromkeys(word for forms in words for word in forms))}
        vectors = self._word_vectors(list(row_of))
        pairs = [(t, row_of[word], count) for t, forms in enumerate(words) for word, count in forms.items()]
        terms, rows, counts = (torch.tensor(column, device=vectors.device) for column in zip(*pairs, strict=True))
        sums = vectors.new_zeros((len(words), vectors.shape[1]))
        return torch.nn.functional.normalize(sums.index_add_(0, terms, vectors[rows] * counts[:, None]), dim=-1)

    @torch.no_grad()
    def _word_vectors(self, words: Sequence[str]) -> Tensor:
        """Means of the last layer f32 [V, dim] at unit length, projected if the last feature is `mini`."""
        ids = self.tokenizer(words, self.recipe.document_tokens).ids
        device = self.tower.vocabulary.device
        batches = micro_batches(
            ids, self.recipe.document_tokens, self.recipe.fit.micro_batch_tokens, self.tokenizer.pad_id
        )
        means = []
        for _, padded, mask in batches:
            hidden = self.tower.transformer(input_ids=padded.to(device), attention_mask=mask.to(device))
            shares = (mask / mask.sum(dim=1, keepdim=True)).to(device)
            means.append((hidden.last_hidden_state.float() * shares[:, :, None]).sum(dim=1))
        vectors = torch.nn.functional.normalize(in_order(means, [rows for rows, _, _ in batches]), dim=-1)
        if self.tower.features[-1] == MINI:
            vectors = torch.nn.functional.normalize(vectors @ self.tower.projection, dim=-1)
        return vectors

    def _sampled_terms(self, step: int) -> I64:
        n, size = self.recipe.vocabulary_sample, len(self.head.names)
        if not 0 < n < size:
            return np.arange(size)
        return np.random.default_rng((self.recipe.fit.seed, 1, step)).choice(size, size=n, replace=False)

    def _flops(self, weights: Tensor, n_candidates: int) -> Tensor:
        if self.recipe.flops_form == "masked":
            return sparsity.masked_flops(weights, self.recipe.flops_threshold)
        if self.recipe.flops_form == "grouped":
            return sparsity.grouped_flops(weights.view(-1, n_candidates, weights.shape[1]).transpose(0, 1))
        return sparsity.flops(weights)


def _token_ids(features: TokenFeatures) -> list[list[int]]:
    """The token ids of each text without padding."""
    lengths = features.mask.sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(features.ids.tolist(), lengths, strict=True)]


def _values_of(wanted: I64, terms: I64, values: F32) -> F32:
    """f32 [n]: the value of every wanted term (both ascending), 0 for those not among `terms`."""
    aligned = np.zeros(len(wanted), dtype=np.float32)
    if len(wanted):
        columns = np.searchsorted(wanted, terms).clip(max=len(wanted) - 1)
        present = wanted[columns] == terms
        aligned[columns[present]] = values[present]
    return aligned
