"""Job `clicks`: a cross-encoder out of impression logs, where a click is not relevance and no click is not its lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Choose, Group
from chamfer.models.training.data.impressions import PROPENSITY, RANK, as_impression
from chamfer.models.training.jobs.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from chamfer.models.training.loop.recipe import DataConfig
from chamfer.models.training.loop.student import Draw
from chamfer.models.training.losses import clicks


@dataclass(frozen=True, kw_only=True)
class ClicksRecipe(CrossEncoderRecipe):
    """data.groups is a log as chamfer selections writes it. A draw is a whole impression, its first data.last places.

    click_loss     propensity: Rel-MF's, with propensities at least `least` (0: unbiased); noise: NBPO's surrogate
                   gradients; likelihood: NBPO's exact ones
    eta            examination of a rank is rank ** -eta where none was logged
    data.negatives noise and likelihood: so many unclicked documents are drawn for each clicked one, as NBPO does;
                   propensity takes all that were shown, since drawing by click would undo its being unbiased
    noise_l2       weight of g's squared parameters: without it g explains everything
    """

    click_loss: Literal["propensity", "noise", "likelihood"] = "propensity"
    least: float = 0.05
    eta: float = 1.0
    noise_l2: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least <= 1:
            raise InvalidInput(f"least is {self.least}, expected a probability")
        if self.weights or self.cet.form != "off":
            raise InvalidInput("job clicks makes its own weights; leave weights and cet out")


class Noise(nn.Module):
    """g: how likely a relevant document goes unclicked, a linear function of ln rank; starts at -6, about 0.2 %."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, ranks: Tensor) -> Tensor:
        return self.shift - 6.0 + self.slope * ranks.log()

    def penalty(self) -> Tensor:
        return self.slope**2 + self.shift**2


class ClicksStudent(CrossEncoderStudent):
    """Scores impressions of any length, with clicks or without; the mean runs over the documents of a batch."""

    recipe: ClicksRecipe

    def __init__(self, recipe: ClicksRecipe) -> None:
        super().__init__(recipe)
        self.noise = Noise().requires_grad_(recipe.click_loss != "propensity")

    needs_positive = False

    @property
    def teachers(self) -> Sequence[str]:
        return (RANK, PROPENSITY)

    def groups(self, choose: Choose) -> list[Group]:
        found = [as_impression(group, self.recipe.eta) for group in super().groups(choose)]
        return [group for group in found if group.doc_ids]

    def places(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The places of an impression that a step sees."""
        shown = list(range(len(group.doc_ids)))[: config.last]
        if self.recipe.click_loss == "propensity":
            return shown
        clicked = [place for place in shown if group.labels[place] > 0]
        others = [place for place in shown if group.labels[place] <= 0]
        n = min(len(others), config.negatives * max(1, len(clicked)))
        return sorted([*clicked, *(others[int(i)] for i in rng.choice(len(others), size=n, replace=False))])

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        del step
        scores = self._score([(draw.query, text) for draw in draws for text in draw.texts])
        device = scores.device
        clicked = torch.tensor([label for draw in draws for label in draw.labels], device=device)
        ranks, propensity = (
            torch.tensor([value for draw in draws for value in draw.teachers[column]], device=device)
            for column in range(2)
        )
        if self.recipe.click_loss == "propensity":
            values = clicks.inverse_propensity(scores, clicked, propensity, self.recipe.least)
            return {"propensity": values.mean()}
        loss = clicks.noisy_labels_surrogate if self.recipe.click_loss == "noise" else clicks.noisy_labels
        noise = self.noise(ranks)
        with torch.no_grad():
            self.notes = {"likelihood": float(clicks.noisy_labels(scores, noise, clicked).mean())}
        values = loss(scores, noise, clicked)
        return {self.recipe.click_loss: values.mean(), "penalty": self.recipe.noise_l2 * self.noise.penalty()}
