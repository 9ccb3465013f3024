"""LEMUR (Jaasaari et al., 2026, arXiv 2601.21853): one learnt vector per text, whose inner products estimate MaxSim.

MaxSim is a sum over query tokens x of g_l(x) = max over the tokens p of document l of <x, p>. One feature map for all
documents

    psi(x) = GELU(LayerNorm(W x + b)),  f32 [h]

is trained to predict g of some documents with a linear layer on top, squared error on targets standardised by one
global mean and deviation. Afterwards a document's vector is the least-squares fit of its g_l on psi over a fixed set of
tokens, w_l = pinv(Psi) g_l, and a query's vector is the sum of psi over its tokens, divided by 32.

Training and fitting run in torch on the device of their tensors; queries are encoded with numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from chamfer.core.types import F32, I64, Array

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 3e-3
BATCH_TOKENS = 512
CLIP_NORM = 0.5
QUERY_DIVISOR = np.float32(32)
_LAYER_NORM_EPS = 1e-5
_DOCUMENTS_PER_PRODUCT = 16
_ROWS_PER_PRODUCT = 4096


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """psi: weight f32 [d, h], and bias, gain and shift f32 [h] (the last two of the layer norm)."""

    weight: F32
    bias: F32
    gain: F32
    shift: F32

    def __call__(self, tokens: F32) -> F32:
        """psi f32 [T, h] of tokens f32 [T, d]."""
        from scipy.special import erf

        z = tokens @ self.weight + self.bias
        z -= z.mean(axis=1, keepdims=True)
        z /= np.sqrt(np.mean(np.square(z), axis=1, keepdims=True) + np.float32(_LAYER_NORM_EPS))
        z = z * self.gain + self.shift
        features: F32 = np.float32(0.5) * z * (1 + erf(z * np.float32(1 / np.sqrt(2))))
        return features


@dataclass(frozen=True, slots=True)
class Fit:
    """The inputs of a document's least-squares fit; mean and deviation are those of the targets.

    tokens f32 [n, d], inverse f32 [h, r].

    With Psi [n, h] the features of the tokens, inverse inverse^T Psi^T is pinv(Psi), without singular values below
    eps max(n, h) sigma_max, where eps is that of f32.
    """

    features: FeatureMap
    tokens: F32
    inverse: F32
    mean: float
    deviation: float


def encode_queries(values: F32, offsets: I64, features: FeatureMap) -> F32:
    """f32 [N, h]: the sum of psi over each query's tokens, divided by 32.

    One product per query, so that its bits do not depend on the other queries.
    """
    encodings = np.zeros((len(offsets) - 1, len(features.bias)), dtype=np.float32)
    for row, (start, stop) in enumerate(pairwise(offsets)):
        if stop > start:
            encodings[row] = features(values[start:stop]).sum(axis=0) / QUERY_DIVISOR
    return encodings


def largest_products(
    tokens: torch.Tensor, values: torch.Tensor, offsets: I64, rows: I64, out: torch.Tensor | None = None
) -> torch.Tensor:
    """g f32 [n, K]: for each of n tokens f32 [n, d] the largest inner product with a token of each document in rows.

    values f32 [T, d] with offsets i64 [N+1]; a document without tokens gives 0. One product per document; the result is
    written to `out` if given, which must hold zeros.
    """
    import torch

    products = torch.zeros((len(tokens), len(rows)), device=tokens.device) if out is None else out
    for column, row in enumerate(rows):
        start, stop = int(offsets[row]), int(offsets[row + 1])
        if stop > start:
            products[:, column] = (tokens @ values[start:stop].T).amax(dim=1)
    return products


def train_features(
    inputs: torch.Tensor, targets: torch.Tensor, dim: int, epochs: int, seed: int
) -> Iterator[tuple[FeatureMap, float]]:
    """Yields the untrained map (error NaN) and, after each epoch, the map and the mean squared error of the epoch.

    inputs f32 [n, d]; targets f32 [n, m], standardised, on the same device. Adam 3e-3, batches of 512 tokens, gradient
    norm clipped at 0.5. Draws come from `seed` on the CPU, so that every device starts from the same weights.
    """
    import torch
    from torch import nn

    draw = torch.Generator().manual_seed(seed)
    hidden, norm = nn.Linear(inputs.shape[1], dim), nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
    output = nn.Linear(dim, targets.shape[1], bias=False)
    with torch.no_grad():
        for weight in (hidden.weight, hidden.bias, output.weight):
            bound = (inputs.shape[1] if weight is not output.weight else dim) ** -0.5
            weight.uniform_(-bound, bound, generator=draw)
    model = nn.Sequential(hidden, norm, nn.GELU(), output).to(inputs.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    yield _as_map(hidden, norm), float("nan")
    for _ in range(epochs):
        total = torch.zeros((), device=inputs.device)
        for rows in torch.split(torch.randperm(len(inputs), generator=draw).to(inputs.device), BATCH_TOKENS):
            loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            total += loss.detach() * len(rows)
        yield _as_map(hidden, norm), float(total) / len(inputs)


def inverse_of(psi: torch.Tensor) -> F32:
    """B f32 [h, r] with B B^T psi^T = pinv(psi) for psi f32 [n, h]; singular values below the cut-off count as 0.

    Computed in f64 from the eigenvectors of psi^T psi (psi psi^T where that is smaller): squares of kept singular
    values lie above 1e-15 of the largest.
    """
    import torch

    wide = len(psi) < psi.shape[1]
    side = min(psi.shape)
    gram = torch.zeros((side, side), dtype=torch.float64, device=psi.device)
    for part in torch.split(psi.T if wide else psi, _ROWS_PER_PRODUCT):
        double = part.double()
        gram += double.T @ double
    squares, vectors = torch.linalg.eigh(gram)
    cut = (np.finfo(np.float32).eps * max(psi.shape)) ** 2 * squares[-1]
    kept = squares > torch.clamp(cut, min=1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    factor = psi.double().T @ (vectors / squares) if wide else vectors / squares.sqrt()
    inverse: F32 = factor.float().cpu().numpy()
    return inverse


class DocumentFit:
    """Computes the vectors w_l of documents. Holds pinv(Psi) f32 [h, n] on its device."""

    def __init__(self, fit: Fit, device: str) -> None:
        import torch

        self._fit = fit
        self._tokens = torch.from_numpy(fit.tokens).to(device)
        psi = torch.from_numpy(fit.features(fit.tokens)).to(device)
        inverse = torch.from_numpy(fit.inverse).to(device).double()
        parts = [(inverse @ (inverse.T @ rows.double().T)).float() for rows in torch.split(psi, _ROWS_PER_PRODUCT)]
        self._pseudo_inverse = torch.cat(parts, dim=1)

    def __call__(self, values: Array, offsets: I64) -> F32:
        """f32 [N, h] of N documents of token vectors [T, d], offsets i64 [N+1].

        Documents are fitted in groups of a fixed size, the last one padded, so that a document's bits do not depend on
        the others.
        """
        import torch

        device = self._tokens.device
        tokens = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)
        fitted = np.empty((len(offsets) - 1, len(self._pseudo_inverse)), dtype=np.float32)
        targets = torch.empty((len(self._tokens), _DOCUMENTS_PER_PRODUCT), device=device)
        for start in range(0, len(fitted), _DOCUMENTS_PER_PRODUCT):
            rows = np.arange(start, min(start + _DOCUMENTS_PER_PRODUCT, len(fitted)), dtype=np.int64)
            targets.zero_()
            largest_products(self._tokens, tokens, offsets, rows, targets)
            weights = self._pseudo_inverse @ ((targets - self._fit.mean) / self._fit.deviation)
            fitted[rows] = weights[:, : len(rows)].T.cpu().numpy()
        return fitted


def _as_map(hidden: torch.nn.Linear, norm: torch.nn.LayerNorm) -> FeatureMap:
    arrays = (hidden.weight.T, hidden.bias, norm.weight, norm.bias)
    weight, bias, gain, shift = (array.detach().cpu().float().contiguous().numpy().copy() for array in arrays)
    return FeatureMap(weight, bias, gain, shift)
