"""What a job trains, and the draws it learns from: mostly a tower with an adapter and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.token_batches import Tokenizer, length_groups
from chamfer.models.networks.checkpoint import Description, describe, parts_of, save
from chamfer.models.networks.transformer import folder_of, open_tower
from chamfer.models.training.data.groups import Choose, Group, Image, read_groups, sample_places
from chamfer.models.training.loop.lora import adapt, changes_of, quick
from chamfer.models.training.loop.recipe import DataConfig, Recipe
from chamfer.models.training.losses.contrastive import not_relevant


@dataclass(frozen=True, slots=True)
class Draw:
    """One query with the candidates of one step: texts and labels aligned, place 0 relevant; teachers [T][K].

    relevant are all relevant documents of the group; images are known to the jobs that look at them.
    """

    query: str
    doc_ids: list[str]
    texts: list[str]
    labels: list[float]
    teachers: list[list[float]]
    relevant: set[str]
    query_image: Image | None = None


class Draws(torch.utils.data.Dataset[Draw]):
    """Draw i of epoch e depends on the seed, e and i alone: a resumed run sees what an unbroken one saw."""

    def __init__(
        self,
        groups: Sequence[Group],
        documents: Mapping[str, str],
        config: DataConfig,
        teachers: Sequence[str],
        seed: int,
        places: Callable[[Group, DataConfig, np.random.Generator], list[int]] | None = None,
    ) -> None:
        self._places = places or sampled
        self._groups = groups
        self._documents = documents
        self._config = config
        self._teachers = teachers
        self._seed = seed
        self._order = [np.random.default_rng((seed, epoch)).permutation(len(groups)) for epoch in range(config.epochs)]

    def __len__(self) -> int:
        return len(self._groups) * self._config.epochs

    def __getitem__(self, index: int) -> Draw:
        epoch, place = divmod(index, len(self._groups))
        group = self._groups[self._order[epoch][place]]
        rng = np.random.default_rng((self._seed, epoch, place))
        return draw(group, self._documents, self._places(group, self._config, rng), self._teachers)


def sampled(group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
    """One positive and `negatives` others, by sample_places."""
    return sample_places(group, config.negatives, config.first, config.last, rng)


def draw(group: Group, documents: Mapping[str, str], places: Sequence[int], teachers: Sequence[str]) -> Draw:
    """The candidates of a group at these places."""
    taken = group.take(places)
    return Draw(
        query=group.query,
        doc_ids=list(taken.doc_ids),
        texts=[documents[doc_id] for doc_id in taken.doc_ids],
        labels=[float(label) for label in taken.labels],
        teachers=[[float(value) for value in taken.teachers[name]] for name in teachers],
        relevant={group.doc_ids[place] for place in group.positives},
        query_image=group.query_image,
    )


class Learner(nn.Module, ABC):
    """What the loop trains. Jobs give `losses`, `score` and `save`; the rest has defaults."""

    needs_positive = True  # whether groups without a relevant candidate are refused

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.notes: dict[str, float] = {}  # what the last batch showed beside its losses; logged with them
        self.facts: dict[str, Any] = {}  # what the report says beside its measures

    def begin(self, folder: Path) -> None:
        """Goes on from a finished model."""
        raise InvalidInput(f"job {self.recipe.job} cannot go on from {folder}; leave start out")

    def quick(self) -> AbstractContextManager[None]:
        """What the loop trains within: faster, to the same effect."""
        return nullcontext()

    @property
    def teachers(self) -> Sequence[str]:
        """Columns of the groups that the losses read."""
        return ()

    def groups(self, choose: Choose) -> list[Group]:
        """The rows of recipe.data.groups that `choose` names."""
        return read_groups(self.recipe.data.groups, choose)

    def places(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The candidates of a group that a step sees."""
        return sampled(group, config, rng)

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        """Called once before training with the texts of all documents and the number of steps."""
        del documents, steps

    def rebuild(self, draws: Draws) -> bool:
        """Called once the start was measured. True: the model is another now, and is measured again before it learns.

        A resumed run calls it too, so it must come to the same model.
        """
        del draws
        return False

    def finish(self) -> None:
        """Called once after the last step; what it leaves is measured and saved."""

    @abstractmethod
    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """The parts of the loss of one batch; their sum is minimised."""

    @abstractmethod
    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Scores f32 [n] of a group's candidates, as the finished model gives them."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the finished model."""

    def forward(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """See `losses`; a module's call, so that data-parallel wrappers see it."""
        return self.losses(draws, step)


class Student(Learner):
    """A tower with an adapter and a head; subclasses say their `kind` and give `losses` and `score`."""

    kind: ClassVar[str]
    head: nn.Module

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tower = open_tower(
            recipe.backbone, recipe.features, dropout=recipe.adapter.dropout, attention=recipe.attention
        )
        self.tower.requires_grad_(False)
        if recipe.adapter.rank:
            adapt(self.tower.transformer, recipe.adapter)
        self.tokenizer = Tokenizer(folder_of(recipe.backbone) / "tokenizer.json")

    @abstractmethod
    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        """Scores f32 [n] of texts for a query, as the finished model gives them."""

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        return self.score(group.query, [documents[doc_id] for doc_id in group.doc_ids])

    def begin(self, folder: Path) -> None:
        """Head and adapter of a finished model. InvalidInput where its shape is not this recipe's."""
        found, own = describe(folder), self.description()
        head, changes = parts_of(folder, found)
        layers = {name: m for name, m in self.tower.transformer.named_modules() if hasattr(m, "lora_A")}
        fits = all(
            name in layers and layers[name].lora_A["default"].weight.shape == change.down.shape
            for name, change in changes.items()
        )
        same = ("kind", "backbone", "features", "adapter_scale")
        tensors = self.head.state_dict()  # what the recipe's head has beyond the finished one begins as in a new head
        fits &= all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in head.items())
        if not fits or any(getattr(found, name) != getattr(own, name) for name in same):
            raise InvalidInput(f"start = {folder} is {found}, which cannot become {own} with {self.recipe.adapter}")
        self.head.load_state_dict(head, strict=False)  # tables that are not learnt are not stored
        with torch.no_grad():
            for name, change in changes.items():
                layers[name].lora_A["default"].weight.copy_(change.down)
                layers[name].lora_B["default"].weight.copy_(change.up)

    def description(self) -> Description:
        """What the saved folder says."""
        head = getattr(self.recipe, "head", None)
        return Description(
            kind=self.kind,
            backbone=self.recipe.backbone,
            features=self.recipe.features,
            attention=self.recipe.attention,
            query_tokens=self.recipe.served_query_tokens or self.recipe.query_tokens,
            document_tokens=self.recipe.served_document_tokens or self.recipe.document_tokens,
            head={} if head is None else asdict(head),
            adapter_scale=self.recipe.adapter.scale,
        )

    def save(self, folder: Path) -> None:
        save(
            folder,
            self.description(),
            dict(self.head.state_dict()),
            changes_of(self.tower.transformer, self.recipe.adapter.scale),
        )

    def quick(self) -> AbstractContextManager[None]:
        return quick(self.tower, self.recipe.fit.precision)


def micro_batches(
    ids: Sequence[Sequence[int]], limit: int, budget: int, pad_id: int
) -> list[tuple[list[int], Tensor, Tensor]]:
    """(rows, ids i64 [b, L], mask i64 [b, L]) of all rows, those of like length together, at most `budget` tokens."""
    out = []
    for width, rows in length_groups([len(row) for row in ids], limit=limit, budget=budget):
        padded = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            padded[place, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.long)
            mask[place, : len(ids[row])] = 1
        out.append((rows, padded, mask))
    return out


def in_order(parts: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Values [N, ...] of batches laid end to end, put where `rows` says they belong."""
    order = torch.tensor([row for own in rows for row in own])
    out = torch.cat(list(parts))
    return out[torch.argsort(order).to(out.device)]


def in_batch(draws: Sequence[Draw], device: torch.device) -> tuple[Tensor, Tensor]:
    """(places i64 [B] of the positives, allowed bool [B, N]) among the documents of all draws, laid end to end.

    Every draw has the same number of candidates; what a query counts as relevant is no negative of it.
    """
    each = len(draws[0].doc_ids)
    columns = [doc_id for draw in draws for doc_id in draw.doc_ids]
    allowed = not_relevant(columns, [draw.relevant for draw in draws])
    return torch.arange(len(draws), device=device) * each, allowed.to(device)
