"""Gradients of a large batch in the memory of a small one (GradCache, Gao et al., arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Call = tuple[Tensor, ...]


def cached(encode: Callable[..., Tensor], calls: Sequence[Call]) -> Tensor:
    """The concatenated outputs of encode(*call), [N, D]: computed without a graph, and again with one for the gradient.

    The gradient equals that of plain encoding: the second pass draws the same dropout and runs under the same autocast.
    It is added to the parameters' `grad` directly, which works in one process only: with several, gradients would be
    exchanged too early.
    """
    if not torch.is_grad_enabled():
        return torch.cat([encode(*call) for call in calls])
    outputs: Tensor = _Cached.apply(torch.zeros((), requires_grad=True), encode, calls)  # type: ignore[no-untyped-call]
    return outputs


class _Cached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, encode: Callable[..., Tensor], calls: Sequence[Call]) -> Tensor:
        del anchor  # present only so that autograd computes a gradient
        ctx.encode, ctx.calls, ctx.states = encode, calls, []
        device = calls[0][0].device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        parts = []
        for call in calls:
            ctx.states.append(_random_state(call[0]))
            parts.append(encode(*call))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        start = 0
        device, dtype, enabled = ctx.autocast
        after = _random_state(ctx.calls[0][0])
        for call, state in zip(ctx.calls, ctx.states, strict=True):
            _set_random_state(call[0], state)
            with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
                part = ctx.encode(*call)
            part.backward(gradients[0][start : start + len(part)].to(part.dtype))
            start += len(part)
        _set_random_state(ctx.calls[0][0], after)
        return None, None, None


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


def _set_random_state(like: Tensor, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
