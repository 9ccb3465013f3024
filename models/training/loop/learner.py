"""The interface between the training loop and a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Choose, Group, read_groups
from chamfer.models.training.loop.draws import Draw, Draws, sampled
from chamfer.models.training.loop.recipe import DataConfig, Recipe


class Learner(nn.Module, ABC):
    """What the loop trains. A job implements `losses`, `score_group` and `save`; the other hooks have defaults.

    notes   numbers about the last batch beside its losses; logged with them
    facts   what the report states beside its measures
    """

    needs_positive = True  # whether groups without a relevant candidate are refused

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.notes: dict[str, float] = {}
        self.facts: dict[str, Any] = {}

    @property
    def teachers(self) -> Sequence[str]:
        """Columns of the groups that the losses read."""
        return ()

    @property
    def single_process(self) -> bool:
        """Whether the losses are wrong under data parallelism."""
        return False

    def load_start(self, folder: Path) -> None:
        """Continues from a finished model (init_from). InvalidInput if the job cannot."""
        raise InvalidInput(f"job {self.recipe.job} cannot continue from {folder}; leave init_from out")

    def use_token_vectors(self, folder: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> None:
        """Reads precomputed token vectors (data.token_vectors) of texts by id. InvalidInput if the job cannot."""
        del folder, documents, queries
        raise InvalidInput(
            f"job {self.recipe.job} cannot learn from stored token vectors; leave data.token_vectors out"
        )

    def groups(self, choose: Choose) -> list[Group]:
        """The groups of recipe.data.groups whose rows `choose` selects."""
        return read_groups(self.recipe.data.groups, choose)

    def sample(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """Samples the candidates of a group for one step, by index: one positive, then `num_negatives` others."""
        return sampled(group, config, rng)

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        """Called once before training with the texts of all documents and the number of steps."""
        del documents, steps

    def restructure(self, draws: Draws) -> bool:
        """Called once after the start was measured; may replace parts of the model.

        Returns True if it did, and the model is then measured again before training. A resumed run calls it too, so the
        result must be reproducible.
        """
        del draws
        return False

    def fast_forward(self) -> AbstractContextManager[None]:
        """A context within which forward and backward passes are faster and compute the same."""
        return nullcontext()

    def on_train_end(self) -> None:
        """Called once after the last step; the model that it leaves is measured and saved."""

    @abstractmethod
    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """The terms of the loss of one batch by name; their sum is minimised."""

    @abstractmethod
    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        """Scores f32 [n] of a group's candidates, as the finished model computes them."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the finished model."""

    def forward(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """Calls `losses`, so that data-parallel wrappers intercept it."""
        return self.losses(draws, step)
