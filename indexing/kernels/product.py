"""Product quantisation to one byte per 8 consecutive dimensions (Jegou et al., TPAMI 2011; PQ-256-8 of MUVERA, sec. 3).

Group m of a vector is replaced by the nearest of 256 centroids. Each of C codebooks serves an equal run of the D / 8
groups; the paper has C = D / 8. Queries are not quantised; a score is the inner product with the reconstruction.
"""

from __future__ import annotations

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Array
from chamfer.indexing.kernels import _numba

WIDTH = 8
CENTROIDS = 256


def train_codebooks(values: F32, codebooks: int, seed: int) -> F32:
    """Centroids f32 [C, 256, 8] of values f32 [n, D], n >= 1, by k-means over the groups of each codebook.

    Exact if a codebook's groups have at most 256 distinct values.
    """
    import faiss

    if values.shape[1] % (WIDTH * codebooks) or len(values) == 0:
        raise InvalidInput(
            f"{list(values.shape)} values for {codebooks} codebooks; expected D a multiple of 8 C, n >= 1"
        )
    codebook_centroids = np.zeros((codebooks, CENTROIDS, WIDTH), dtype=np.float32)
    run = values.shape[1] // codebooks
    for number in range(codebooks):
        points = np.ascontiguousarray(values[:, number * run : (number + 1) * run]).reshape(-1, WIDTH)
        distinct = np.unique(points, axis=0)
        if len(distinct) <= CENTROIDS:
            codebook_centroids[number] = distinct[np.minimum(np.arange(CENTROIDS), len(distinct) - 1)]
            continue
        # Distinct points, since cells that many documents leave empty would otherwise attract centroids.
        means = faiss.Kmeans(WIDTH, CENTROIDS, niter=15, seed=seed, min_points_per_centroid=1)
        means.train(distinct)
        codebook_centroids[number] = means.centroids
    return codebook_centroids


def quantise(values: F32, centroids: F32) -> Array:
    """Codes u8 [n, D / 8] of values f32 [n, D]: the nearest centroid, the lowest on ties. Rows are independent."""
    codes = np.empty((len(values), values.shape[1] // WIDTH), dtype=np.uint8)
    columns = np.ascontiguousarray(centroids.transpose(0, 2, 1))
    _numba.assign_codes(np.ascontiguousarray(values), columns, codes)
    return codes


def reconstruct(codes: Array, centroids: F32) -> F32:
    """The vectors f32 [n, D] that codes u8 [n, D / 8] represent."""
    book = np.arange(codes.shape[1]) * len(centroids) // codes.shape[1]
    vectors: F32 = centroids[book, codes].reshape(len(codes), -1)
    return vectors


def scan_codes(codes: Array, centroids: F32, query: F32) -> F32:
    """f32 [n]: inner products of query f32 [D] with the vectors of codes u8 [n, D / 8]. Cost 256 D + n D / 8."""
    groups = query.reshape(len(centroids), -1, WIDTH)
    tables = np.einsum("cgw,cvw->cgv", groups, centroids).reshape(codes.shape[1], CENTROIDS)
    scores: F32 = _numba.scan_tables(codes, np.ascontiguousarray(tables, dtype=np.float32))
    return scores
