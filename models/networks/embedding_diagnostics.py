"""What a set of embeddings looks like: plain functions over unit vectors f32 [N, D].

Collapse is what breaks fixed dimensional encodings: MUVERA (arXiv 2405.19504) sorts token vectors by the signs of
random projections, and vectors in a narrow cone all have the same signs. Measures that depend on the axes (as the
L1,2 norm of arXiv 2410.10672) do not see that; all but `dimension_use` here are the same for a rotated set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array


@dataclass(frozen=True, slots=True)
class Geometry:
    """effective_rank and participation in dimensions; the others as their functions say."""

    vectors: int
    dims: int
    effective_rank: float
    participation: float
    mean_cosine: float
    dimension_use: float
    uniformity: float
    same_side: float


def unit_rows(values: Array) -> F32:
    """Rows at length 1, rows of zeros left out."""
    vectors = np.asarray(values, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    return np.asarray(vectors[norms > 0] / norms[norms > 0, None], dtype=np.float32)


def geometry(unit: F32) -> Geometry:
    """All measures of a set; InvalidInput for fewer than two vectors. Cost O(N^2 D + N D^2 + D^3)."""
    if len(unit) < 2:
        raise InvalidInput(f"{len(unit)} vectors have no geometry, expected 2 or more")
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
    """Eigenvalues f64 [D] of X^T X, not centred: a common direction counts as what it is, one direction."""
    wide = unit.astype(np.float64)
    return np.asarray(np.linalg.eigvalsh(wide.T @ wide).clip(0.0))


def effective_rank(eigenvalues: Array) -> float:
    """exp(-sum p log p), p the eigenvalues by their sum; Roy and Vetterli (EUSIPCO 2007), there of singular values.

    1 where all vectors lie on a line, D where every direction has the same share.
    """
    p = eigenvalues / eigenvalues.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def participation(eigenvalues: Array) -> float:
    """(sum l)^2 / sum l^2: as the effective rank between 1 and D, and below it, since large shares weigh more."""
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def pairwise(unit: F32) -> Array:
    """Cosines f64 [N (N - 1) / 2] of all pairs."""
    wide = unit.astype(np.float64)
    return np.asarray((wide @ wide.T)[np.triu_indices(len(wide), 1)].clip(-1.0, 1.0))


def dimension_use(unit: F32) -> float:
    """exp(entropy of the coordinates' shares of the energy) / D: 1 where all are used alike, 1/D where one is alone.

    Depends on the axes: it speaks of what scalar quantisation and truncated (Matryoshka) prefixes work with.
    """
    shares = (unit.astype(np.float64) ** 2).sum(axis=0)
    return effective_rank(shares) / int(unit.shape[1])


def uniformity(cosines: Array) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs (Wang and Isola, ICML 2020); 0: one point, about -4: spread."""
    return float(np.log(np.exp(-4.0 * (1.0 - cosines)).mean()))


def alignment(cosines: Array) -> float:
    """Mean |x - y|^2 over pairs that belong together, from their cosines (Wang and Isola); 0: they coincide."""
    return float((2.0 - 2.0 * cosines).mean())


def same_side(cosines: Array) -> float:
    """Probability that a random hyperplane through the origin leaves a pair on one side: mean 1 - angle / pi.

    Goemans and Williamson 1995, Charikar 2002. 0.5 for vectors without a common direction, 1 for equal ones.
    """
    return float((1.0 - np.arccos(cosines) / np.pi).mean())


def meaning_for_fde(found: Geometry, k_sim: int = 4) -> str:
    """What the geometry of token vectors means for fixed dimensional encodings with k_sim hyperplanes."""
    together = found.same_side**k_sim
    spread = 0.5**k_sim
    figures = (
        f"two random token vectors share an FDE cell with probability about {together:.2f} "
        f"({spread:.2f} if spread out), and {found.effective_rank:.0f} of {found.dims} directions carry them"
    )
    if together > 4 * spread:
        return f"{figures}: cells hardly tell tokens apart; centre the vectors (fde.centred) or train against collapse."
    if together > 2 * spread:
        return f"{figures}: cells are crowded; centring (fde.centred) or more repetitions will help."
    return f"{figures}: cells separate tokens well."
