"""Job `clicks`: a cross-encoder from impression logs, where clicks are biased evidence of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Choose, Group
from chamfer.models.training.data.impressions import PROPENSITY, RANK, as_impression
from chamfer.models.training.jobs.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from chamfer.models.training.loop.draws import Draw
from chamfer.models.training.loop.recipe import DataConfig
from chamfer.models.training.losses import clicks


@dataclass(frozen=True, kw_only=True)
class ClicksRecipe(CrossEncoderRecipe):
    """data.groups is a log as `chamfer selections` writes it. A draw is an impression's first data.range_max documents.

    click_loss          propensity: inverse propensity (Rel-MF); noise: NBPO's surrogate gradients; likelihood: NBPO's
                        exact ones
    propensity_clip     propensities below this are raised to it; 0 is unbiased
    eta                 examination at a rank is rank ** -eta where no propensity was logged
    data.num_negatives  for noise and likelihood, unclicked documents sampled per clicked one, as NBPO does; propensity
                        uses all that were shown, since sampling by click would make it biased
    noise_l2            weight of the squared parameters of the noise model, which would otherwise explain everything
    """

    click_loss: Literal["propensity", "noise", "likelihood"] = "propensity"
    propensity_clip: float = 0.05
    eta: float = 1.0
    noise_l2: float = 0.01

    RENAMED: ClassVar[dict[str, str]] = {**CrossEncoderRecipe.RENAMED, "least": "propensity_clip"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.propensity_clip <= 1:
            raise InvalidInput(f"propensity_clip is {self.propensity_clip}, expected a probability")
        if self.weight_column or self.cet.selection_model != "off":
            raise InvalidInput("job clicks computes its own weights; leave weight_column and cet out")


class Noise(nn.Module):
    """The noise model g: the logit that a relevant document stays unclicked, linear in ln rank, -6 (0.2 %) at first."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, ranks: Tensor) -> Tensor:
        return self.shift - 6.0 + self.slope * ranks.log()

    def penalty(self) -> Tensor:
        return self.slope**2 + self.shift**2


class ClicksStudent(CrossEncoderStudent):
    """Scores impressions of any length, with or without clicks; losses are means over the documents of a batch."""

    recipe: ClicksRecipe

    def __init__(self, recipe: ClicksRecipe) -> None:
        super().__init__(recipe)
        self.noise = Noise().requires_grad_(recipe.click_loss != "propensity")

    needs_positive = False

    @property
    def teachers(self) -> Sequence[str]:
        return (RANK, PROPENSITY)

    def groups(self, choose: Choose) -> list[Group]:
        impressions = [as_impression(group, self.recipe.eta) for group in super().groups(choose)]
        return [group for group in impressions if group.doc_ids]

    def sample(self, group: Group, config: DataConfig, rng: np.random.Generator) -> list[int]:
        """The documents of an impression for one step, by index."""
        shown = list(range(len(group.doc_ids)))[: config.range_max]
        if self.recipe.click_loss == "propensity":
            return shown
        clicked = [index for index in shown if group.labels[index] > 0]
        others = [index for index in shown if group.labels[index] <= 0]
        n = min(len(others), config.num_negatives * max(1, len(clicked)))
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
            values = clicks.inverse_propensity(scores, clicked, propensity, self.recipe.propensity_clip)
            return {"propensity": values.mean()}
        loss = clicks.noisy_labels_surrogate if self.recipe.click_loss == "noise" else clicks.noisy_labels
        noise = self.noise(ranks)
        with torch.no_grad():
            self.notes = {"likelihood": float(clicks.noisy_labels(scores, noise, clicked).mean())}
        values = loss(scores, noise, clicked)
        return {self.recipe.click_loss: values.mean(), "penalty": self.recipe.noise_l2 * self.noise.penalty()}
