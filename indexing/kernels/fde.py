"""MUVERA's fixed dimensional encodings (Dhulipala et al., 2024, arXiv 2405.19504): token vectors to one vector.

Each of R repetitions cuts the space into B = 2^k cells: bit i of token x is <g_i, x> > 0 for k Gaussian vectors g.
A cell of a query holds the SUM of its query tokens, a cell of a document the MEAN of its document tokens. With `fill`,
an empty cell of a document takes the document's token whose bits are nearest in Hamming distance, the lowest token
number on ties; empty cells of queries stay zero. Each cell is projected to p dimensions by psi, which differs between
repetitions and is the same for queries and documents. The concatenation has D = R B p dimensions, and the inner product
of two encodings estimates R times

    Chamfer(Q, P) = sum over q in Q of max over p in P of <q, p>.

Bit i of a cell's number is bit i of its tokens: natural binary order, no Gray code. Tokens are hashed before any
projection. A bit is the sign of a float64 sum in a fixed order; a float32 or bf16 product replaces the sum if it is
farther from 0 than its error bound, so that a token has the same cells on every processor and in every batch.
Cost of a document of L tokens: L d R k + R B d p multiplications and R L d additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I32, I64
from chamfer.indexing.kernels import _native, _numba_fde

MAX_BITS = 16
MAX_DIMENSIONS = 1 << 20

Projection = Literal["dense", "count_sketch"]


@dataclass(frozen=True, slots=True)
class FdeShape:
    """The size of an encoding: R repetitions of 2^k_sim cells of d_proj dimensions, then projected to final_dim.

    `dense` is the paper's +-1 / sqrt(d_proj) projection; `count_sketch` sends every coordinate, with a random sign, to
    one output: the same mean and variance, other bits. final_dim 0 omits the last projection (a count-sketch).
    """

    repetitions: int = 20
    k_sim: int = 5
    d_proj: int = 16
    projection: Projection = "count_sketch"
    final_dim: int = 0

    def __post_init__(self) -> None:
        if self.repetitions < 1 or not 0 <= self.k_sim <= MAX_BITS or self.d_proj < 1 or self.final_dim < 0:
            raise InvalidInput(
                f"fde repetitions {self.repetitions}, k_sim {self.k_sim}, d_proj {self.d_proj}, final_dim "
                f"{self.final_dim}; expected repetitions >= 1, 0 <= k_sim <= {MAX_BITS}, d_proj >= 1, final_dim >= 0"
            )
        if self.raw_dim > MAX_DIMENSIONS:
            raise InvalidInput(
                f"fde of {self.repetitions} repetitions x 2^{self.k_sim} cells x {self.d_proj} dimensions has "
                f"{self.raw_dim:,} dimensions, the limit is {MAX_DIMENSIONS:,}; lower k_sim, repetitions or d_proj"
            )
        if self.final_dim > self.raw_dim:
            raise InvalidInput(f"fde final_dim {self.final_dim} is above the {self.raw_dim} dimensions it projects")

    @property
    def n_cells(self) -> int:
        return 1 << self.k_sim

    @property
    def raw_dim(self) -> int:
        """Dimensions before the last projection: R 2^k d_proj."""
        return self.repetitions * self.n_cells * self.d_proj

    @property
    def dim(self) -> int:
        """Dimensions of an encoding."""
        return self.final_dim or self.raw_dim


@dataclass(frozen=True, eq=False)
class FdeMatrices:
    """Every random draw of an encoding, as arrays. They are stored, since random generators may change.

    planes f32 [d, R k], projections f32 [R, d, p] (p = d where the projection is the identity), final_slots i32 and
    final_signs f32 [R B p], both empty without a last projection.
    """

    planes: F32
    projections: F32
    final_slots: I32
    final_signs: F32

    @property
    def token_dim(self) -> int:
        return int(self.planes.shape[0])

    @cached_property
    def native(self) -> _native.FdeTables:
        """The matrices in the form that the C code reads."""
        return _native.FdeTables(self.planes, self.projections)

    @cached_property
    def rows(self) -> F32:
        """The planes, one per row: f32 [R k, d]."""
        return np.ascontiguousarray(self.planes.T)

    @cached_property
    def margins(self) -> F32:
        """How far the float32 product of a unit vector with each plane can be from the exact one, doubled: f32 [R k].

        d 2^-24 |g| to first order, in any order of summation (Higham, Accuracy and Stability, sec. 3.1).
        """
        lengths = np.linalg.norm(self.rows.astype(np.float64), axis=1)
        bounds: F32 = ((self.token_dim + 1) * 2.0**-23 * lengths + 1e-30).astype(np.float32)
        return bounds


def draw_matrices(shape: FdeShape, token_dim: int, seed: int) -> FdeMatrices:
    """The draws for tokens of token_dim dimensions. Repetitions have independent seeds, children of `seed`.

    d_proj = token_dim uses the identity. Planes are Gaussian numbers rounded to bfloat16: the directions stay
    random, and bf16 products leave half as many signs undecided. Equal arguments give equal bits.
    """
    if shape.d_proj > token_dim:
        raise InvalidInput(f"fde d_proj {shape.d_proj} is above the {token_dim} dimensions of a token vector")
    *children, last = np.random.SeedSequence(seed).spawn(shape.repetitions + 1)
    planes, projections = [], []
    for child in children:
        draw = np.random.Generator(np.random.PCG64(child))
        planes.append(_native.as_bf16(draw.standard_normal((token_dim, shape.k_sim)).astype(np.float32)))
        projections.append(_projection(draw, token_dim, shape))
    slots, signs = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    if shape.final_dim:
        draw = np.random.Generator(np.random.PCG64(last))
        slots = draw.integers(0, shape.final_dim, shape.raw_dim, dtype=np.int32)
        signs = _signs(draw, (shape.raw_dim,))
    return FdeMatrices(np.ascontiguousarray(np.concatenate(planes, axis=1)), np.stack(projections), slots, signs)


def encode_queries(values: F32, offsets: I64, matrices: FdeMatrices, shape: FdeShape) -> F32:
    """f32 [N, D] of N queries of token vectors f32 [T, d], offsets i64 [N+1]. Linear in the tokens; no tokens give 0.

    A query's bits depend on the query alone. Raises InvalidInput for tokens that are not finite or not of d dimensions.
    """
    return _encode(values, offsets, matrices, shape, is_query=True, fill=False)


def encode_documents(values: F32, offsets: I64, matrices: FdeMatrices, shape: FdeShape, *, fill: bool = True) -> F32:
    """f32 [N, D] of N documents of token vectors f32 [T, d], offsets i64 [N+1]; an empty document is 0.

    A document's bits depend on the document alone. Raises InvalidInput as `encode_queries`.
    """
    return _encode(values, offsets, matrices, shape, is_query=False, fill=fill)


def _encode(values: F32, offsets: I64, matrices: FdeMatrices, shape: FdeShape, *, is_query: bool, fill: bool) -> F32:
    if values.ndim != 2 or values.shape[1] != matrices.token_dim:
        raise InvalidInput(f"token vectors are {list(values.shape)}, the encoding reads [T, {matrices.token_dim}]")
    tokens = np.ascontiguousarray(values, dtype=np.float32)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    if offsets[0] != 0 or offsets[-1] != len(tokens):
        raise InvalidInput(f"offsets run from {offsets[0]} to {offsets[-1]}, expected 0 to {len(tokens)}")
    encodings = _native.encode_fde(matrices.native, tokens, offsets, is_query=is_query, fill=fill)
    if encodings is None:
        _check_finite(tokens)
        encodings = np.zeros((len(offsets) - 1, shape.repetitions, shape.n_cells, shape.d_proj), dtype=np.float32)
        draws = matrices.rows, matrices.margins, matrices.projections
        if is_query:
            _numba_fde.encode_queries(tokens, offsets, *draws, encodings)
        else:
            _numba_fde.encode_documents(tokens, offsets, *draws, fill, encodings)
    elif encodings.size and np.isnan(encodings.item(0)):
        _check_finite(tokens)
    return _last(encodings, matrices, shape)


def _projection(draw: np.random.Generator, token_dim: int, shape: FdeShape) -> F32:
    """psi of one repetition, f32 [d, p]."""
    if shape.d_proj == token_dim:
        return np.eye(token_dim, dtype=np.float32)
    if shape.projection == "dense":
        return _signs(draw, (token_dim, shape.d_proj)) / np.float32(np.sqrt(shape.d_proj))
    psi = np.zeros((token_dim, shape.d_proj), dtype=np.float32)
    slots = draw.integers(0, shape.d_proj, token_dim)
    psi[np.arange(token_dim), slots] = _signs(draw, (token_dim,))
    return psi


def _signs(draw: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (draw.integers(0, 2, shape) * 2 - 1).astype(np.float32)


def _check_finite(tokens: F32) -> None:
    # A sum is finite only if all its terms are; the slow check finds the token for the message.
    if not np.isfinite(tokens.sum()) and not np.isfinite(tokens).all():
        raise InvalidInput(f"token vector {int(np.argmin(np.isfinite(tokens).all(axis=1)))} is not finite")


def _last(blocks: F32, matrices: FdeMatrices, shape: FdeShape) -> F32:
    raw = blocks.reshape(len(blocks), shape.raw_dim)
    if not shape.final_dim:
        return raw
    sketches = np.zeros((len(raw), shape.final_dim), dtype=np.float32)
    _numba_fde.sketch_rows(raw, matrices.final_slots, matrices.final_signs, sketches)
    return sketches
