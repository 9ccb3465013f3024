"""What a job trains: a tower with adapters, a head, and the way from draws of groups to losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chamfer.errors import InvalidInput, Unavailable
from models.batches import Tokenizer, length_groups
from models.tower import Fold, Tower, folder_of, open_tower
from models.trained import Description, describe, parts_of
from models.training.groups import Choose, Group, read_groups, sample_places
from models.training.recipe import AdapterConfig, DataConfig, Recipe


@dataclass(frozen=True, slots=True)
class Draw:
    """One query with the candidates of one step: texts and labels aligned, place 0 relevant; teachers [T][K]."""

    query: str
    doc_ids: list[str]
    texts: list[str]
    labels: list[float]
    teachers: list[list[float]]
    relevant: set[str]


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
    ids = [group.doc_ids[place] for place in places]
    return Draw(
        query=group.query,
        doc_ids=ids,
        texts=[documents[doc_id] for doc_id in ids],
        labels=[float(group.labels[place]) for place in places],
        teachers=[[float(group.teachers[name][place]) for place in places] for name in teachers],
        relevant={group.doc_ids[place] for place in group.positives},
    )


class Student(nn.Module):
    """Base of the jobs' students: subclasses give `losses` and `score`, and say what they are in `description`."""

    head: nn.Module
    needs_positive = True  # whether groups without a relevant candidate are refused

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.notes: dict[str, float] = {}  # what the last batch showed beside its losses; logged with them
        self.tower = open_tower(recipe.backbone, recipe.features, dropout=recipe.adapter.dropout)
        self.tower.requires_grad_(False)
        if recipe.adapter.rank:
            adapt(self.tower, recipe.adapter)
        self.tokenizer = Tokenizer(folder_of(recipe.backbone) / "tokenizer.json")

    def begin(self, folder: Path) -> None:
        """Head and adapter of a finished model. InvalidInput where its shape is not this recipe's."""
        found, own = describe(folder), self.description()
        head, changes = parts_of(folder, found)
        layers = {name: m for name, m in self.tower.transformer.named_modules() if hasattr(m, "lora_A")}
        fits = all(
            name in layers and layers[name].lora_A["default"].weight.shape == change.down.shape
            for name, change in changes.items()
        )
        same = ("kind", "backbone", "features", "head", "adapter_scale")
        if not fits or any(getattr(found, name) != getattr(own, name) for name in same):
            raise InvalidInput(f"start = {folder} is {found}, which cannot become {own} with {self.recipe.adapter}")
        self.head.load_state_dict(head, strict=False)  # tables that are not learnt are not stored
        with torch.no_grad():
            for name, change in changes.items():
                layers[name].lora_A["default"].weight.copy_(change.down)
                layers[name].lora_B["default"].weight.copy_(change.up)

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

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """The parts of the loss of one batch; their sum is minimised."""
        raise NotImplementedError

    def score(self, query: str, texts: Sequence[str]) -> Tensor:
        """Scores f32 [n] of texts for a query, as the finished model gives them."""
        raise NotImplementedError

    def description(self) -> Description:
        """What the saved folder says."""
        raise NotImplementedError

    def forward(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """See `losses`; a module's call, so that data-parallel wrappers see it."""
        return self.losses(draws, step)

    def adapter(self) -> dict[str, Fold]:
        """The low-rank changes by name of the layer."""
        return {
            name: Fold(module.lora_A["default"].weight, module.lora_B["default"].weight, self.recipe.adapter.scale)
            for name, module in self.tower.transformer.named_modules()
            if hasattr(module, "lora_A")
        }


def adapt(tower: Tower, config: AdapterConfig) -> None:
    """Puts LoRA into the linear layers of the tower from `first_layer` on; only those then learn."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Unavailable("adapters need PEFT: pip install 'chamfer[train]'") from None
    layers = int(tower.transformer.config.num_hidden_layers)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        layers_to_transform=list(range(config.first_layer, layers)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers is renaming
        inject_adapter_in_model(lora, tower.transformer)
    for module in tower.transformer.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # under autocast it would go to f32 and back


@contextmanager
def quick(tower: Tower, precision: str) -> Iterator[None]:
    """Within it the tower trains faster and computes the same: under autocast frozen linear weights are kept in bf16
    instead of cast at every use, and on a CPU attention is written out, whose backward pass beats the fused one's."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    attention = tower.transformer.config._attn_implementation
    if precision == "bf16":
        linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
        frozen = [p for module in linear for p in module.parameters() if not p.requires_grad]
        kept = [(p, p.data) for p in frozen]
        for p in frozen:
            p.data = p.data.bfloat16()
    if not tower.vocabulary.is_cuda:
        tower.transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.transformer.set_attn_implementation(attention)
        for p, whole in kept:
            p.data = whole.to(p.device)


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
