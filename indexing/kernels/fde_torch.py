"""Fixed dimensional encodings and MaxSim in torch, on the device of their input; used on CUDA.

Computes the same functions of the same matrices as chamfer.indexing.kernels.fde and .maxsim, in chunks that fit a byte
budget. Cells are the same (a sign that a product leaves undecided is computed in float64); values are equal up to
rounding. Cells are summed by sorting, never by atomic additions, so that equal calls give equal bits on CUDA as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chamfer.core.errors import InvalidInput
from chamfer.indexing.kernels.fde import FdeMatrices, FdeShape

BUDGET = 256 << 20
_EMPTY = 64 << 40  # key of a cell without tokens: distance << 40 | token


def encode_queries(
    values: Tensor, offsets: Tensor, matrices: FdeMatrices, shape: FdeShape, *, budget: int = BUDGET
) -> Tensor:
    """f32 [N, D] of N queries of tokens f32, f16 or bf16 [T, d], offsets i64 [N+1].

    As chamfer.indexing.kernels.fde.encode_queries; `budget` bytes of intermediates.
    """
    return _encode(values, offsets, matrices, shape, is_query=True, fill=False, budget=budget)


def encode_documents(
    values: Tensor,
    offsets: Tensor,
    matrices: FdeMatrices,
    shape: FdeShape,
    *,
    fill: bool = True,
    budget: int = BUDGET,
) -> Tensor:
    """f32 [N, D] of N documents of tokens f32, f16 or bf16 [T, d], offsets i64 [N+1]; `budget` bytes of intermediates.

    Cost per document of L tokens: L d R (k + p) multiplications, and L R p floats of intermediates.
    """
    return _encode(values, offsets, matrices, shape, is_query=False, fill=fill, budget=budget)


def maxsim(
    queries: Tensor,
    query_offsets: Tensor,
    values: Tensor,
    offsets: Tensor,
    rows: Tensor | None = None,
    *,
    budget: int = BUDGET,
) -> Tensor:
    """MaxSim f32 [Q, K] of Q queries of tokens [Tq, d] with documents `rows` i64 [K] (all if None) of values [T, d].

    Products have the dtype of `values` (bf16 and f16 on the tensor cores). Empty texts score 0. Costs Tq d per token.
    """
    if queries.ndim != 2 or queries.shape[1] != values.shape[1]:
        raise InvalidInput(f"query tokens have shape {list(queries.shape)}, expected [Tq, {values.shape[1]}]")
    rows = torch.arange(len(offsets) - 1, device=values.device) if rows is None else rows
    lengths = offsets[rows + 1] - offsets[rows]
    query_lengths = query_offsets.diff()
    columns = queries.to(values.dtype).T
    scores = torch.zeros(len(query_lengths), len(rows), device=values.device)
    for first, last in _chunks(lengths, len(queries) * 8 + values.shape[1] * values.element_size(), budget):
        chunk = lengths[first:last]
        products = (values[_tokens(offsets[rows[first:last]], chunk)] @ columns).float()
        best = torch.segment_reduce(products, "max", lengths=chunk, axis=0)
        best[chunk == 0] = 0.0
        scores[:, first:last] = torch.segment_reduce(
            best.T.contiguous(), "sum", lengths=query_lengths, axis=0, initial=0
        )
    return scores


def inner_products(values: Tensor, scales: Tensor | None, queries: Tensor, *, budget: int = BUDGET) -> Tensor:
    """f32 [Q, N]: queries f32 [Q, D] with rows f16 [N, D], or i8 [N, D] times scales f32 [N]: the scan of encodings.

    Converts one block of rows to float32 at a time. Cost Q N D.
    """
    products = torch.empty(len(queries), len(values), device=values.device)
    step = max(1, budget // (4 * values.shape[1]))
    for at in range(0, len(values), step):
        products[:, at : at + step] = queries @ values[at : at + step].float().T
    return products if scales is None else products * scales


def _encode(
    values: Tensor, offsets: Tensor, matrices: FdeMatrices, shape: FdeShape, *, is_query: bool, fill: bool, budget: int
) -> Tensor:
    if values.ndim != 2 or values.shape[1] != matrices.token_dim:
        raise InvalidInput(f"token vectors are {list(values.shape)}, the encoding reads [T, {matrices.token_dim}]")
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput("a token vector is not finite")
    encodings = torch.zeros(len(offsets) - 1, shape.dim, device=values.device)
    draws = _Draws(matrices, shape, values.device)
    per_token = 4 * shape.repetitions * (3 * shape.d_proj + shape.k_sim + 8)
    for first, last in _chunks(offsets.diff(), per_token, budget, 8 * shape.raw_dim):
        tokens = values[offsets[first] : offsets[last]]
        raw = draws.blocks(tokens, offsets[first : last + 1] - offsets[first], is_query=is_query, fill=fill)
        encodings[first:last] = draws.last(raw.reshape(last - first, shape.raw_dim))
    return encodings


class _Draws:
    """The matrices of an encoding on a device."""

    def __init__(self, matrices: FdeMatrices, shape: FdeShape, device: torch.device) -> None:
        self.shape = shape
        self.planes = torch.from_numpy(matrices.planes).to(device)
        self.margins = torch.from_numpy(matrices.margins).to(device)
        projections = torch.from_numpy(matrices.projections).to(device)
        self.projection = projections.permute(1, 0, 2).reshape(matrices.token_dim, -1)
        self.final_slots = torch.from_numpy(matrices.final_slots).to(device).long()
        self.final_signs = torch.from_numpy(matrices.final_signs).to(device)

    def blocks(self, tokens: Tensor, offsets: Tensor, *, is_query: bool, fill: bool) -> Tensor:
        """The projected cells f32 [N, R, B, p] of N texts; offsets start at 0."""
        n, (reps, n_cells, p) = len(offsets) - 1, (self.shape.repetitions, self.shape.n_cells, self.shape.d_proj)
        text = torch.repeat_interleave(torch.arange(n, device=tokens.device), offsets.diff())
        repetition = torch.arange(reps, device=tokens.device)
        cell = ((text[:, None] * reps + repetition) * n_cells + self.cells(tokens)).ravel()  # token by token
        projected = (tokens.float() @ self.projection).reshape(-1, p)
        counts = torch.bincount(cell, minlength=n * reps * n_cells)
        order = torch.argsort(cell, stable=True)
        sums = torch.segment_reduce(projected[order], "sum", lengths=counts, axis=0, initial=0)
        if not is_query:
            sums /= counts.clamp(min=1)[:, None]
        if fill:
            keys = torch.full((n * reps * n_cells,), _EMPTY, dtype=torch.int64, device=tokens.device)
            token = torch.arange(len(tokens), device=tokens.device).repeat_interleave(reps)
            keys.scatter_reduce_(0, cell, token, "amin")
            empty = torch.nonzero((counts == 0) & (offsets.diff() > 0).repeat_interleave(reps * n_cells)).ravel()
            nearest = _nearest(keys.view(n * reps, n_cells)).ravel()[empty]
            sums[empty] = projected[nearest * reps + empty // n_cells % reps]
        return sums.view(n, reps, n_cells, p)

    def cells(self, tokens: Tensor) -> Tensor:
        """The cell of every token in every repetition: i64 [T, R]."""
        k = self.shape.k_sim
        if k == 0:
            return torch.zeros(len(tokens), self.shape.repetitions, dtype=torch.int64, device=tokens.device)
        wide = tokens.float()
        # bf16 products of bf16 tokens and planes are exact, and rounding their sum keeps its sign.
        halves = self.planes.bfloat16()
        exact = tokens.dtype == torch.bfloat16 and torch.equal(halves.float(), self.planes)
        products = tokens @ halves if exact else wide @ self.planes
        above = products > 0
        length = 1.001 * wide.square().sum(dim=1, keepdim=True).sqrt() + 1e-17
        token, plane = torch.nonzero(~(products.abs().float() > 1.01 * self.margins * length), as_tuple=True)
        above[token, plane] = (wide[token].double() * self.planes.T[plane].double()).sum(dim=1) > 0
        weights = 1 << torch.arange(k, device=tokens.device)
        return (above.view(len(tokens), self.shape.repetitions, k) * weights).sum(dim=2)

    def last(self, raw: Tensor) -> Tensor:
        """The last projection."""
        if not self.shape.final_dim:
            return raw
        order = torch.argsort(self.final_slots, stable=True)
        counts = torch.bincount(self.final_slots, minlength=self.shape.final_dim)
        signed = (raw * self.final_signs).T[order].contiguous()
        return torch.segment_reduce(signed, "sum", lengths=counts, axis=0, initial=0).T


def _nearest(keys: Tensor) -> Tensor:
    """The lowest token at the least Hamming distance of every cell: i64 [M, B] from keys [M, B], bit by bit."""
    step = 1
    while step < keys.shape[1]:
        pairs = keys.view(len(keys), -1, 2, step)
        keys = torch.minimum(pairs, pairs.flip(2) + (1 << 40)).view(len(keys), -1)
        step *= 2
    return keys & ((1 << 40) - 1)


def _chunks(lengths: Tensor, token_bytes: int, budget: int, text_bytes: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges of texts whose tokens take at most `budget` bytes, one text at least."""
    sizes = (lengths.cpu() * token_bytes + text_bytes).tolist()
    first, taken = 0, 0
    for at, size in enumerate(sizes):
        if at > first and taken + size > budget:
            yield first, at
            first, taken = at, 0
        taken += size
    if first < len(sizes):
        yield first, len(sizes)


def _tokens(starts: Tensor, lengths: Tensor) -> Tensor:
    """Flat positions of the tokens of texts with these starts and lengths, concatenated."""
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - ends + lengths, lengths)
    return shift + torch.arange(len(shift), device=starts.device)
