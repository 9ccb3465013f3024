"""Correction of pooling bias inside a job (CET, arXiv 2209.05072): the selection model, and what its weights become.

A label says relevant and selected for judgement. Beside the ranker R stands a model S of selection, and both weigh each
other's negatives. `released` gives S the ranker's own input, whose optimum ranks as no weighting does; to correct
anything S must differ: `pool` gives it the pool's features alone, `logged` fits it to the selection that was logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.core.errors import InvalidInput
from chamfer.models.training.losses import ranking, selection


@dataclass(frozen=True, kw_only=True)
class CetConfig:
    """form          off, or what S reads and learns from: released, pool, logged
    weights          negatives: min(1 / (1 - p_s), most); exact: positives and negatives, R's p_r calibrated
    temperature      T of the mutual weights 1 + exp(S/T); logged probabilities are taken as they are
    most             bound of a negative's weight (0: none); p_s in exact positive weights is at least 0.1
    normalised       weights divided by their mean over the batch, so that the learning rate stays what it is
    warmup           share of the steps with all weights 1
    features         columns of the pool that S reads, each with the number it is divided by
    selected         column that says what was judged (1) and what was not (0), for `logged`
    arm              weighted, or the controls: constant (their mean) and shuffled (over the batch's candidates)
    """

    form: Literal["off", "released", "pool", "logged"] = "off"
    weights: Literal["negatives", "exact"] = "negatives"
    temperature: float = 10.0
    most: float = 20.0
    normalised: bool = True
    warmup: float = 0.1
    features: dict[str, float] = field(default_factory=dict)
    selected: str = "selected"
    arm: Literal["weighted", "constant", "shuffled"] = "weighted"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InvalidInput(f"cet.temperature is {self.temperature}, expected a number above 0")
        if self.form in ("pool", "logged") and not self.features:
            raise InvalidInput(f"cet.form {self.form!r} needs cet.features, columns of the groups with their scale")
        if self.weights == "exact" and self.form != "logged":
            raise InvalidInput("exact weights need probabilities of selection; set cet.form = 'logged'")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the groups that are read."""
        return (*self.features, self.selected) if self.form == "logged" else tuple(self.features)


class PoolSelection(nn.Module):
    """S: a linear function of the pool's features f32 [..., F], each divided by its scale; logits f32 [...]."""

    scales: Tensor

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor(list(scales), dtype=torch.float32), persistent=False)
        self.linear = nn.Linear(len(scales), 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features / self.scales).squeeze(-1)
        return logits


class Calibration(nn.Module):
    """p_r = sigmoid(a R + b), learnt from labels: P(label) = p_r p_s. The scores themselves get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * scores.detach() + self.shift)

    def loss(self, scores: Tensor, selected: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of p_r p_s with the labels."""
        likely = (self(scores) * selected.detach()).clamp(1e-6, 1 - 1e-6)
        return F.binary_cross_entropy(likely, (labels > 0).to(likely.dtype))


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of both models f32 [B, K], with gradient, and those they weigh by: dropout off, no gradient."""

    ranker: Tensor
    selector: Tensor
    steady_ranker: Tensor
    steady_selector: Tensor


def corrected(
    scored: Scored, labels: Tensor, selected: Tensor | None, calibration: Calibration, config: CetConfig, warm: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The losses of R, S and the calibration, and what to watch: cosine of R and S, mean weight of the negatives.

    labels f32 [B, K] above 0 where relevant; `selected` f32 [B, K] is read by `logged` alone. While `warm`, R's weights
    are 1. R and S share no parameter and all weights are detached, so that neither learns from the other's loss.
    """
    negative = labels <= 0
    own, other = _weights(scored, negative, calibration, config)
    parts: dict[str, Tensor] = {}
    if config.form == "logged":
        if selected is None:
            raise InvalidInput("cet.form 'logged' needs the column of cet.selected")
        parts["selection"] = F.binary_cross_entropy_with_logits(scored.selector, selected)
        if config.weights == "exact":
            parts["calibration"] = calibration.loss(scored.steady_ranker, other, labels)
    else:
        parts["selection"] = ranking.pairwise(scored.selector, labels, other)
    mean = float(own[negative].mean())
    used = torch.ones_like(own) if warm else _arm(own, negative, config.arm)
    parts["pairwise"] = ranking.pairwise(scored.ranker, labels, used)
    return parts, {"cosine": cosine(scored.steady_ranker, scored.steady_selector), "mean_weight": mean}


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of the scores of two models f32 [B, K], each query's mean taken out; the first thing to look at."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (one.float(), other.float()))
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def _weights(scored: Scored, negative: Tensor, calibration: Calibration, config: CetConfig) -> tuple[Tensor, Tensor]:
    """R's weights [B, K]; S's weights, or for `logged` its probabilities of selection."""
    if config.form == "logged":
        other = torch.sigmoid(scored.steady_selector)
        own = 1.0 / (1.0 - other).clamp_min(1e-6)
    else:
        own = selection.released_weights(scored.steady_selector, config.temperature)
        mutual = selection.released_weights(scored.steady_ranker, config.temperature)
        other = torch.where(negative, _bounded(mutual, negative, config), 1.0)
    own = torch.where(negative, _bounded(own, negative, config), 1.0)
    if config.weights == "exact":
        up, down = selection.exact_weights(other, calibration(scored.steady_ranker))
        own = torch.where(negative, _normalised(down, negative, config), _normalised(up, ~negative, config))
    return own.detach(), other.detach()


def _bounded(weights: Tensor, counted: Tensor, config: CetConfig) -> Tensor:
    return _normalised(weights.clamp(max=config.most) if config.most else weights, counted, config)


def _normalised(weights: Tensor, counted: Tensor, config: CetConfig) -> Tensor:
    return weights / weights[counted].mean() if config.normalised else weights


def _arm(weights: Tensor, negative: Tensor, arm: str) -> Tensor:
    """The weights themselves, or those of a control: the negatives' mean for each, or theirs in another order."""
    if arm == "weighted":
        return weights
    used = weights.clone()
    values = weights[negative]
    used[negative] = values.mean() if arm == "constant" else values[torch.randperm(len(values), device=values.device)]
    return used
