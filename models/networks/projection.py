"""The projection of `mini`'s token vectors from 384 to 128 dimensions, and how it is fitted.

It is an uncentred principal component analysis: the 128 right singular vectors with the largest singular values of a
sample of unit token vectors, that is, the orthonormal columns P that maximise sum |x P|^2. It is uncentred because
MaxSim takes inner products, which are preserved best this way. MODEL_FILE was fitted on documents alone (FairytaleQA
and SciFact, without questions or judgements); recipes/fit_mini_projection.py repeats the fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chamfer.core.artifact import file_digest
from chamfer.core.types import F32, Array

MODEL_FILE = Path(__file__).parents[1] / "weights" / "mini" / "projection.safetensors"
DIM = 128


def load_projection() -> tuple[F32, str]:
    """(projection f32 [384, 128] with orthonormal columns, SHA-256 of its file)."""
    from safetensors.numpy import load_file

    return np.ascontiguousarray(load_file(MODEL_FILE)["projection"]), file_digest(MODEL_FILE)


def fit_projection(batches: Iterable[Array], dim: int = DIM) -> tuple[F32, float]:
    """(projection f32 [H, dim], fraction of the squared length it preserves) of unit vectors in batches f32 [n, H].

    Signs are fixed (the largest entry of each column is positive), so that equal input gives equal output. ValueError
    without vectors.
    """
    moment: NDArray[np.float64] | None = None
    for batch in batches:
        wide = np.asarray(batch, dtype=np.float64)
        moment = wide.T @ wide if moment is None else moment + wide.T @ wide
    if moment is None:
        raise ValueError("no vectors to fit a projection on")
    values, vectors = np.linalg.eigh(moment)
    largest = vectors[:, ::-1][:, :dim]
    signs = np.sign(largest[np.argmax(np.abs(largest), axis=0), np.arange(dim)])
    return np.ascontiguousarray(largest * signs, dtype=np.float32), float(values[::-1][:dim].sum() / values.sum())
