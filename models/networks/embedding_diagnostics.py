"""Geometry of a set of embeddings: plain functions over unit vectors f32 [N, D].

Collapse is what breaks fixed dimensional encodings: MUVERA (arXiv 2405.19504) partitions token vectors by the signs of
random projections, and vectors in a narrow cone all have the same signs. Measures that depend on the axes (such as the
L1,2 norm of arXiv 2410.10672) do not detect it; all measures here but `dimension_use` are invariant to rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array


@dataclass(frozen=True, slots=True)
class Geometry:
    """Measures of a set; each is documented at the function of its name."""

    vectors: int
    dims: int
    effective_rank: float
    participation: float
    mean_cosine: float
    dimension_use: float
    uniformity: float
    same_side: float


def unit_rows(values: Array) -> F32:
    """The rows f32 [n, D] scaled to length 1; rows of zeros are left out."""
    vectors = np.asarray(values, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    return np.asarray(vectors[norms > 0] / norms[norms > 0, None], dtype=np.float32)


def geometry(unit: F32) -> Geometry:
    """All measures of a set; InvalidInput for fewer than two vectors. Cost O(N^2 D + N D^2 + D^3)."""
    if len(unit) < 2:
        raise InvalidInput(
            f"found {len(unit)} vectors that are not zero, expected at least 2 to measure their geometry"
        )
    eigenvalues = spectrum(unit)
    cosines = pairwise(unit)
    return Geometry(
        vectors=len(unit),
        dims=unit.shape[1],
        effective_rank=effective_rank(eigenvalues),
        participation=participation(eigenvalues),
        mean_cosine=float(cosines.mean()),
        dimension_use=dimension_use(unit),
        uniformity=uniformity(cosines),
        same_side=same_side(cosines),
    )


def spectrum(unit: F32) -> Array:
    """Eigenvalues f64 [D] of X^T X, not centred, so that a direction common to all vectors counts as one direction."""
    wide = unit.astype(np.float64)
    return np.asarray(np.linalg.eigvalsh(wide.T @ wide).clip(0.0))


def effective_rank(eigenvalues: Array) -> float:
    """exp(-sum p log p), p the eigenvalues divided by their sum (Roy and Vetterli, EUSIPCO 2007, for singular values).

    In dimensions: 1 if all vectors lie on a line, D if every direction has the same share.
    """
    p = eigenvalues / eigenvalues.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def participation(eigenvalues: Array) -> float:
    """Participation ratio (sum l)^2 / sum l^2 in dimensions, 1 to D; at most the effective rank."""
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def pairwise(unit: F32) -> Array:
    """Cosines f64 [N (N - 1) / 2] of all pairs."""
    wide = unit.astype(np.float64)
    return np.asarray((wide @ wide.T)[np.triu_indices(len(wide), 1)].clip(-1.0, 1.0))


def dimension_use(unit: F32) -> float:
    """exp(entropy of the coordinates' shares of the energy) / D: 1 if all are used equally, 1/D if only one is.

    It depends on the axes and predicts how well scalar quantisation and truncated (Matryoshka) prefixes work.
    """
    shares = (unit.astype(np.float64) ** 2).sum(axis=0)
    return effective_rank(shares) / int(unit.shape[1])


def uniformity(cosines: Array) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs (Wang and Isola, ICML 2020); 0: one point, about -4: spread."""
    return float(np.log(np.exp(-4.0 * (1.0 - cosines)).mean()))


def alignment(cosines: Array) -> float:
    """Mean |x - y|^2 over positive pairs, from their cosines (Wang and Isola); 0: they coincide."""
    return float((2.0 - 2.0 * cosines).mean())


def same_side(cosines: Array) -> float:
    """Probability that a random hyperplane through the origin has a pair on one side: mean of 1 - angle / pi.

    (Goemans and Williamson 1995, Charikar 2002.) 0.5 for vectors without a common direction, 1 for equal ones.
    """
    return float((1.0 - np.arccos(cosines) / np.pi).mean())


def meaning_for_fde(measured: Geometry, k_sim: int = 4) -> str:
    """One sentence on how well fixed dimensional encodings of k_sim hyperplanes work with these token vectors."""
    together = measured.same_side**k_sim
    spread = 0.5**k_sim
    figures = (
        f"two random token vectors share an FDE cell with probability about {together:.2f} "
        f"({spread:.2f} if spread out); their effective rank is {measured.effective_rank:.0f} of {measured.dims}"
    )
    if together > 4 * spread:
        return f"{figures}: cells hardly separate tokens; centre the vectors (fde.centred) or train against collapse."
    if together > 2 * spread:
        return f"{figures}: cells are crowded; centring (fde.centred) or more repetitions will help."
    return f"{figures}: cells separate tokens well."
