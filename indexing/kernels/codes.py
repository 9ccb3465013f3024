"""Token vectors in 2, 3, 4 or 8 bits per dimension: the residual of a token after its centroid, in uniform steps.

    decoded = scale * (centroid + step * (code - (2^bits - 1) / 2)),  code = clip(floor(residual / step) + 2^(bits - 1))

residual is the token minus its centroid. step is learnt for each dimension (least squared error over a grid, on a
sample). scale gives the decoded vector the length of the original, which recovers a third of the loss of 2 bits on unit
vectors (docs/experiments.md). Residual codes follow ColBERTv2 (arXiv 2112.01488, section 3.3), which uses quantiles
instead of uniform steps, and no scale.

A token's bytes: byte j of the first W = D bits / 8 holds the codes of dimensions j, j + W, ... from its lowest bits up.
Codes of 3 bits store the lower two in that way, followed by a bitmap of the third bits, dimension 0 in the lowest bit
of the first byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chamfer.core.types import F32, I64, Array, ragged_index
from chamfer.indexing.kernels import _native_late, _numba_late
from chamfer.indexing.kernels._native_late import whole_bits
from chamfer.indexing.kernels.centroids import assign

# The best uniform step for a normal variable, in units of its standard deviation, by bits.
_GAUSSIAN_STEP = {2: 0.996, 3: 0.586, 4: 0.335, 8: 0.031}
_GRID = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
_BLOCK_TOKENS = 1 << 15


@dataclass(frozen=True, slots=True)
class TokenCodec:
    """centroids f32 [K, D]; step f32 [D]; bits 2, 3, 4 or 8. Without ids every token has centroid 0."""

    centroids: F32
    step: F32
    bits: int

    @property
    def width(self) -> int:
        """Bytes of a token's codes."""
        return self.planes_width + (-(-len(self.step) // 8) if self.bits == 3 else 0)

    @property
    def planes_width(self) -> int:
        """Bytes of a token's codes before the bitmap of third bits."""
        return -(-len(self.step) * whole_bits(self.bits) // 8)

    @property
    def lowest(self) -> F32:
        """The centroids minus the middle of the codes, f32 [K, D]: the vectors to which step times code is added."""
        lowest: F32 = self.centroids - np.float32((2**self.bits - 1) / 2) * self.step
        return lowest


def learn_step(tokens: F32, centroids: F32, bits: int) -> F32:
    """The step of each dimension f32 [D] with the least squared rounding error on tokens f32 [T, D]; never 0."""
    residuals = tokens - centroids[assign(tokens, centroids)]
    spread = np.maximum(residuals.std(axis=0), 1e-6).astype(np.float32) * np.float32(_GAUSSIAN_STEP[bits])
    steps = np.array(_GRID, dtype=np.float32)[:, None] * spread
    errors = [np.square(residuals - _middles(_round(residuals, step, bits), step, bits)).sum(axis=0) for step in steps]
    best: F32 = steps[np.argmin(errors, axis=0), np.arange(len(spread))]
    return best


def encode(tokens: Array, codec: TokenCodec) -> tuple[Array, Array, Array]:
    """(codes u8 [T, bytes], centroid ids u16 [T], scales f16 [T]) of tokens f32 or f16 [T, D]. Cost T K D."""
    codes = np.zeros((len(tokens), codec.width), dtype=np.uint8)
    ids = assign(tokens, codec.centroids).astype(np.uint16)
    scales = np.empty(len(tokens), dtype=np.float16)
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        stop = min(start + _BLOCK_TOKENS, len(tokens))
        values = tokens[start:stop].astype(np.float32)
        centres = codec.centroids[ids[start:stop]]
        rounded = _round(values - centres, codec.step, codec.bits)
        decoded = centres + _middles(rounded, codec.step, codec.bits)
        lengths = np.linalg.norm(decoded, axis=1)
        scales[start:stop] = np.linalg.norm(values, axis=1) / np.where(lengths > 0, lengths, 1)
        codes[start:stop] = _packed(rounded, codec)
    return codes, ids, scales


def decode(arrays: tuple[Array, Array, Array], codec: TokenCodec, lowest: F32, offsets: I64, rows: I64) -> Array:
    """Token vectors f16 [., D] of documents `rows` from (codes, ids, scales), concatenated; `lowest` is the codec's."""
    decoded = _native_late.decode(arrays, lowest, codec.step, codec.bits, offsets, np.ascontiguousarray(rows))
    if decoded is not None:
        return decoded
    codes, ids, scales = arrays
    tokens, _ = ragged_index(offsets, rows)
    wide = _numba_late.decode(codes, ids, scales[tokens].astype(np.float32), lowest, codec.step, codec.bits, tokens)
    halves: Array = wide.astype(np.float16)
    return halves


def maxsim_codes(
    query: F32, arrays: tuple[Array, Array, Array], codec: TokenCodec, offsets: I64, rows: I64
) -> F32 | None:
    """MaxSim f32 [K] of query f32 [Tq, D] with coded documents `rows`, without decoding; None if the C loop is
    unavailable.

    A query token times the steps is rounded to 8 bits, so that the products are products of bytes:
        <q, decoded> ~ scale * (<q, centroid> + unit * sum over d of bytes_d (code_d - middle)),
    within `maxsim_codes_error`. The bits are the same in any batch on one machine. Cost Tq D byte products per token.
    """
    if query.shape[1] % 4 or not len(query):
        return None
    scaled, units = _query_units(query, codec)
    bytes_ = np.rint(scaled / units[:, None]).astype(np.int8)
    middle = np.float32((2**codec.bits - 1) / 2)
    groups, dim = -(-len(query) // 16), query.shape[1]
    table = np.zeros((len(codec.centroids), 16 * groups), dtype=np.float32)
    table[:, : len(query)] = codec.centroids @ query.T - units * middle * bytes_.sum(axis=1, dtype=np.float32)
    padded = np.zeros((16 * groups, dim), dtype=np.int8)
    padded[: len(query)] = bytes_
    packed = np.ascontiguousarray(padded.reshape(groups, 16, dim // 4, 4).transpose(0, 2, 1, 3))
    all_units = np.zeros(16 * groups, dtype=np.float32)
    all_units[: len(query)] = units
    return _native_late.maxsim_codes((packed, all_units, table), arrays, codec.bits, offsets, rows)


def maxsim_codes_error(query: F32, codec: TokenCodec, largest_norm: float) -> float:
    """How far `maxsim_codes` may be from MaxSim over decoded vectors no longer than largest_norm.

    Eight standard deviations of the summed rounding errors of the query tokens, for residuals of that length.
    """
    _, units = _query_units(query, codec)
    return float(8 * 12**-0.5 * np.sqrt(np.square(units, dtype=np.float64).sum()) * largest_norm / codec.step.min())


def _query_units(query: F32, codec: TokenCodec) -> tuple[F32, F32]:
    """(query tokens times the steps f32 [Tq, D], the unit, 1/127 of each token's largest magnitude, f32 [Tq])."""
    scaled = query * codec.step
    return scaled, np.maximum(np.abs(scaled).max(axis=1) / 127, np.float32(1e-30)).astype(np.float32)


def _packed(rounded: Array, codec: TokenCodec) -> Array:
    """Bytes u8 [T, width] of codes u8 [T, D]."""
    codes = np.zeros((len(rounded), codec.width), dtype=np.uint8)
    bits, width = whole_bits(codec.bits), codec.planes_width
    lower = rounded & np.uint8(2**bits - 1)
    for slot in range(8 // bits):  # position of a value within a byte
        values = lower[:, slot * width : (slot + 1) * width]
        codes[:, : values.shape[1]] |= values << np.uint8(slot * bits)
    if codec.bits == 3:
        codes[:, width:] = np.packbits(rounded >> 2, axis=1, bitorder="little")
    return codes


def _round(residuals: F32, step: F32, bits: int) -> Array:
    levels = 2**bits
    codes: Array = np.clip(np.floor(residuals / step) + levels // 2, 0, levels - 1).astype(np.uint8)
    return codes


def _middles(codes: Array, step: F32, bits: int) -> F32:
    values: F32 = (codes.astype(np.float32) - np.float32((2**bits - 1) / 2)) * step
    return values
