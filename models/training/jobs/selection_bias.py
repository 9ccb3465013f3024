"""Correction of pooling bias in a job (CET, arXiv 2209.05072): the selection model, and the weights it leads to.

A positive label means relevant and selected for judgement. A model S of the selection is trained beside the ranker R,
and each weights the negatives of the other. `released` is the authors' code, in which S has the ranker's own input; its
optimum ranks like training without weights. To correct anything S must differ: `pool` gives it the pool's features
alone, `logged` fits it to the logged selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chamfer.core.errors import InvalidInput
from chamfer.models.training.losses import ranking, selection


@dataclass(frozen=True, kw_only=True)
class CetConfig:
    """The table [cet] of job cross_encoder.

    selection_model    off, or what S reads and is fitted to: released, pool, logged (see above)
    weighting          negatives: min(1 / (1 - p_s), max_weight); exact: positives and negatives, with a calibrated
                       p_r of R
    temperature        T of the mutual weights 1 + exp(S/T); logged probabilities are used as they are
    max_weight         upper bound of a negative's weight (0: none); p_s in exact positive weights is at least 0.1
    normalise_weights  weights are divided by their mean over the batch, which keeps the effective learning rate
    warmup_ratio       fraction of the steps during which all weights are 1
    features           columns of the pool that S reads, each with the number by which it is divided
    selected_column    for logged: the column with 1 where a candidate was judged and 0 where it was not
    arm                weighted, or a control: constant (the mean weight) or shuffled (over the batch's candidates)
    """

    selection_model: Literal["off", "released", "pool", "logged"] = "off"
    weighting: Literal["negatives", "exact"] = "negatives"
    temperature: float = 10.0
    max_weight: float = 20.0
    normalise_weights: bool = True
    warmup_ratio: float = 0.1
    features: dict[str, float] = field(default_factory=dict)
    selected_column: str = "selected"
    arm: Literal["weighted", "constant", "shuffled"] = "weighted"

    RENAMED: ClassVar[dict[str, str]] = {
        "form": "selection_model",
        "weights": "weighting",
        "most": "max_weight",
        "normalised": "normalise_weights",
        "warmup": "warmup_ratio",
        "selected": "selected_column",
    }

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InvalidInput(f"cet.temperature is {self.temperature}, expected a number above 0")
        if self.selection_model in ("pool", "logged") and not self.features:
            raise InvalidInput(
                f"cet.selection_model {self.selection_model!r} needs cet.features, columns of the groups by scale"
            )
        if self.weighting == "exact" and self.selection_model != "logged":
            raise InvalidInput(
                "cet.weighting exact needs probabilities of selection; set cet.selection_model = 'logged'"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the groups that the correction reads."""
        return (*self.features, self.selected_column) if self.selection_model == "logged" else tuple(self.features)


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
    """p_r = sigmoid(a R + b), fitted to labels by P(label) = p_r p_s. The scores themselves get no gradient."""

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
    """Scores f32 [B, K] of both models: with gradient for the losses, without it and dropout for the weights."""

    ranker: Tensor
    selector: Tensor
    steady_ranker: Tensor
    steady_selector: Tensor


def corrected(
    scored: Scored, labels: Tensor, selected: Tensor | None, calibration: Calibration, config: CetConfig, warm: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(losses of R, S and the calibration; notes: cosine of R and S, mean weight of the negatives).

    labels f32 [B, K] above 0 where relevant; `selected` f32 [B, K] is read by `logged` alone. While `warm`, R's weights
    are 1. R and S share no parameters and all weights are detached, so neither is trained by the other's loss.
    """
    negative = labels <= 0
    weights, selector_weights = _weights(scored, negative, calibration, config)
    parts: dict[str, Tensor] = {}
    if config.selection_model == "logged":
        if selected is None:
            raise InvalidInput("cet.selection_model 'logged' needs the column of cet.selected_column")
        parts["selection"] = F.binary_cross_entropy_with_logits(scored.selector, selected)
        if config.weighting == "exact":
            parts["calibration"] = calibration.loss(scored.steady_ranker, selector_weights, labels)
    else:
        parts["selection"] = ranking.pairwise(scored.selector, labels, selector_weights)
    mean = float(weights[negative].mean())
    applied = torch.ones_like(weights) if warm else _arm(weights, negative, config.arm)
    parts["pairwise"] = ranking.pairwise(scored.ranker, labels, applied)
    return parts, {"cosine": cosine(scored.steady_ranker, scored.steady_selector), "mean_weight": mean}


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of the scores of two models f32 [B, K], centred per query; 1 means that the correction does nothing."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (one.float(), other.float()))
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def _weights(scored: Scored, negative: Tensor, calibration: Calibration, config: CetConfig) -> tuple[Tensor, Tensor]:
    """R's weights [B, K] and S's weights, or for `logged` S's probabilities of selection."""
    if config.selection_model == "logged":
        selector = torch.sigmoid(scored.steady_selector)
        ranker = 1.0 / (1.0 - selector).clamp_min(1e-6)
    else:
        ranker = selection.released_weights(scored.steady_selector, config.temperature)
        mutual = selection.released_weights(scored.steady_ranker, config.temperature)
        selector = torch.where(negative, _bounded(mutual, negative, config), 1.0)
    ranker = torch.where(negative, _bounded(ranker, negative, config), 1.0)
    if config.weighting == "exact":
        up, down = selection.exact_weights(selector, calibration(scored.steady_ranker))
        ranker = torch.where(negative, _normalised(down, negative, config), _normalised(up, ~negative, config))
    return ranker.detach(), selector.detach()


def _bounded(weights: Tensor, counted: Tensor, config: CetConfig) -> Tensor:
    return _normalised(weights.clamp(max=config.max_weight) if config.max_weight else weights, counted, config)


def _normalised(weights: Tensor, counted: Tensor, config: CetConfig) -> Tensor:
    return weights / weights[counted].mean() if config.normalise_weights else weights


def _arm(weights: Tensor, negative: Tensor, arm: str) -> Tensor:
    """The weights, or those of a control: every negative gets the mean, or they are permuted among the negatives."""
    if arm == "weighted":
        return weights
    control = weights.clone()
    values = weights[negative]
    control[negative] = (
        values.mean() if arm == "constant" else values[torch.randperm(len(values), device=values.device)]
    )
    return control
