"""Losses that learn relevance from clicks: inverse propensity (Rel-MF) and noisy labels (NBPO).

A click means shown, examined and relevant; no click means little. Both losses are sums over shown documents.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def inverse_propensity(scores: Tensor, clicks: Tensor, propensity: Tensor, clip: float) -> Tensor:
    """(Y/theta) (1 - s)^2 + (1 - Y/theta) s^2 of s = sigmoid(scores), each f32 [n]; arXiv 1909.03601, clipped form.

    theta = max(propensity, clip), the probability that the document was examined. Over clicks Y with
    E[Y] = theta gamma, the mean is that of the relevance gamma itself, gamma (1 - s)^2 + (1 - gamma) s^2, at clip = 0;
    where theta was raised it is off by gamma (propensity/theta - 1) (d1 - d0), d1 = (1 - s)^2 and d0 = s^2. The error
    is squared because 1 - Y/theta is negative for clicks, and cross-entropy would have no lower bound.
    """
    s = torch.sigmoid(scores)
    share = clicks / propensity.clamp_min(clip)
    return share * (1 - s) ** 2 + (1 - share) * s**2


def noisy_labels(scores: Tensor, noise: Tensor, clicks: Tensor) -> Tensor:
    """-log likelihood of clicks where relevant documents stay unclicked with probability sigmoid(noise), f32 [n] each.

    Clicked: log sigmoid(R) (1 - sigmoid(g)); not clicked: log(sigmoid(-R) + sigmoid(g) sigmoid(R)); arXiv 2007.07204.
    """
    clicked = -F.logsigmoid(scores) - F.logsigmoid(-noise)
    missed = F.logsigmoid(noise) + F.logsigmoid(scores)
    return torch.where(clicks > 0, clicked, -torch.logaddexp(F.logsigmoid(-scores), missed))


def noisy_labels_surrogate(scores: Tensor, noise: Tensor, clicks: Tensor) -> Tensor:
    """A loss with NBPO's own gradients, which do not vanish; its value has no meaning. f32 [n] each.

    Clicked: dR = sigmoid(-g) sigmoid(-R), dg = -sigmoid(g) sigmoid(R); not clicked: dR = sigmoid(g) sigmoid(-R) -
    sigmoid(R), dg = sigmoid(-g) sigmoid(R). An unclicked document with fixed g rests at R = ln sigmoid(g), below 0: a
    suspected positive is hardly pushed down, a clean negative indefinitely.
    """
    r, g = torch.sigmoid(scores).detach(), torch.sigmoid(noise).detach()
    up_scores = torch.where(clicks > 0, (1 - g) * (1 - r), g * (1 - r) - r)
    up_noise = torch.where(clicks > 0, -g * r, (1 - g) * r)
    return -(up_scores * scores + up_noise * noise)
