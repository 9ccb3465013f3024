"""The torch versions agree with the compiled ones, on the CPU and, if there is one, on a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chamfer.core.errors import InvalidInput
from chamfer.indexing.kernels import fde, fde_torch
from chamfer.indexing.kernels.fde import FdeShape, draw_matrices
from chamfer.indexing.kernels.maxsim import maxsim_plain

DIM = 64
SHAPES = [
    FdeShape(repetitions=4, k_sim=0, d_proj=8, projection="dense"),
    FdeShape(repetitions=3, k_sim=3, d_proj=DIM),
    FdeShape(repetitions=5, k_sim=5, d_proj=16, projection="count_sketch"),
    FdeShape(repetitions=2, k_sim=7, d_proj=5, projection="dense", final_dim=90),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def texts(seed: int, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((sum(lengths), DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def on(device: str, *arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array).to(device) for array in arrays]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_encodings_equal_the_compiled_ones_whatever_the_budget(shape: FdeShape, budget: int, device: str) -> None:
    matrices = draw_matrices(shape, DIM, 3)
    values, offsets = texts(1, [3, 0, 109, 1, 40, 0])
    for fill in (True, False):
        encoded = fde_torch.encode_documents(*on(device, values, offsets), matrices, shape, fill=fill, budget=budget)
        expected = fde.encode_documents(values, offsets, matrices, shape, fill=fill)
        np.testing.assert_allclose(encoded.cpu(), expected, atol=3e-6)
    encoded_queries = fde_torch.encode_queries(*on(device, values, offsets), matrices, shape, budget=budget)
    np.testing.assert_allclose(encoded_queries.cpu(), fde.encode_queries(values, offsets, matrices, shape), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_encoded_by_their_values(dtype: torch.dtype, device: str) -> None:
    shape = SHAPES[2]
    matrices = draw_matrices(shape, DIM, 3)
    values, offsets = texts(2, [50, 7])
    halves = torch.from_numpy(values).to(dtype)
    encoded = fde_torch.encode_documents(halves.to(device), *on(device, offsets), matrices, shape)
    expected = fde.encode_documents(halves.float().numpy(), offsets, matrices, shape)
    np.testing.assert_allclose(encoded.cpu(), expected, atol=3e-6)


def test_equal_calls_give_equal_bits(device: str) -> None:
    shape = SHAPES[3]
    matrices = draw_matrices(shape, DIM, 5)
    values, offsets = on(device, *texts(3, [80, 20, 109]))
    first = fde_torch.encode_documents(values, offsets, matrices, shape)
    assert torch.equal(first, fde_torch.encode_documents(values, offsets, matrices, shape))


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_maxsim_equals_the_definition(budget: int, device: str) -> None:
    values, offsets = texts(4, [5, 0, 109, 1, 32])
    queries, ends = texts(5, [32, 0, 8])
    for rows in (np.array([4, 0, 0, 1, 2]), None):
        chosen = None if rows is None else torch.from_numpy(rows).to(device)
        scores = fde_torch.maxsim(*on(device, queries, ends, values, offsets), chosen, budget=budget).cpu()
        wanted = np.arange(5) if rows is None else rows
        for q in range(3):
            query = queries[ends[q] : ends[q + 1]]
            np.testing.assert_allclose(scores[q], maxsim_plain(query, values, offsets, wanted), atol=1e-5)


def test_bf16_maxsim_is_close(device: str) -> None:
    values, offsets = texts(6, [100, 40])
    queries, ends = texts(7, [32])
    scores = fde_torch.maxsim(
        *on(device, queries, ends), torch.from_numpy(values).bfloat16().to(device), *on(device, offsets)
    )
    np.testing.assert_allclose(scores[0].cpu(), maxsim_plain(queries, values, offsets, np.arange(2)), atol=0.03)


def test_inputs_that_do_not_fit_are_refused(device: str) -> None:
    shape = SHAPES[2]
    matrices = draw_matrices(shape, DIM, 1)
    values, offsets = on(device, *texts(8, [4]))
    with pytest.raises(InvalidInput, match=r"\[4, 32\], the encoding reads \[T, 64\]"):
        fde_torch.encode_queries(values[:, :32], offsets, matrices, shape)
    with pytest.raises(InvalidInput, match="not finite"):
        fde_torch.encode_queries(values * torch.nan, offsets, matrices, shape)
    with pytest.raises(InvalidInput, match=r"expected \[Tq, 64\]"):
        fde_torch.maxsim(values[:, :32], offsets, values, offsets)
