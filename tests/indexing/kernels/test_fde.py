"""Fixed dimensional encodings: the paper's properties, and equality with the definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamfer.core.errors import InvalidInput
from chamfer.indexing.kernels import _native, _numba_fde
from chamfer.indexing.kernels.fde import FdeMatrices, FdeShape, draw_matrices, encode_documents, encode_queries

DIM = 32
SHAPES = [
    FdeShape(repetitions=reps, k_sim=k, d_proj=p, projection=projection)
    for reps, k, p, projection in [
        (3, 0, DIM, "dense"),
        (4, 1, 5, "dense"),
        (3, 3, 8, "count_sketch"),
        (2, 5, DIM, "dense"),
        (1, 7, 4, "count_sketch"),
    ]
]


@pytest.fixture(autouse=True, params=["c", "numba"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every claim is made for the C loops and for their twin."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numba":
            patch.setattr(_native, "library", lambda: None)
        elif _native.library() is None:
            pytest.skip("fast.c was not built here, or the processor has no AVX512-BF16")
        yield str(request.param)


def tokens(seed: int, n: int, dim: int = DIM) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def ragged(*sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in sets])]).astype(np.int64)
    return np.concatenate(sets), offsets


def document(points: np.ndarray, matrices: FdeMatrices, shape: FdeShape, fill: bool = True) -> np.ndarray:
    return encode_documents(*ragged(points), matrices, shape, fill=fill)[0]


def query(points: np.ndarray, matrices: FdeMatrices, shape: FdeShape) -> np.ndarray:
    return encode_queries(*ragged(points), matrices, shape)[0]


def chamfer(q: np.ndarray, p: np.ndarray) -> float:
    return float((q.astype(np.float64) @ p.T.astype(np.float64)).max(axis=1).sum())


def oracle(points: np.ndarray, matrices: FdeMatrices, shape: FdeShape, *, is_query: bool, fill: bool) -> np.ndarray:
    """The definition, one cell at a time, in float64."""
    k, blocks = shape.k_sim, []
    for r in range(shape.repetitions):
        sides = points @ matrices.planes[:, r * k : (r + 1) * k]
        bits = [tuple(bool(side > 0) for side in row) for row in sides]
        for cell in range(2**k):
            name = tuple(bool(cell >> i & 1) for i in range(k))
            inside = [
                point.astype(np.float64) for point, token_bits in zip(points, bits, strict=True) if token_bits == name
            ]
            if inside:
                value = np.sum(inside, axis=0) / (1 if is_query else len(inside))
            elif is_query or not fill or not len(points):
                value = np.zeros(points.shape[1])
            else:
                distances = [sum(a != b for a, b in zip(token_bits, name, strict=True)) for token_bits in bits]
                value = points[int(np.argmin(distances))].astype(np.float64)
            blocks.append(value @ matrices.projections[r].astype(np.float64))
    return np.concatenate(blocks)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fill", [True, False])
def test_encodings_equal_the_definition(shape: FdeShape, fill: bool) -> None:
    matrices = draw_matrices(shape, DIM, seed=7)
    for n in (0, 1, 2, 9, 40):
        points = tokens(n, n)
        encoding = document(points, matrices, shape, fill)
        np.testing.assert_allclose(encoding, oracle(points, matrices, shape, is_query=False, fill=fill), atol=2e-6)
        encoding = query(points, matrices, shape)
        np.testing.assert_allclose(encoding, oracle(points, matrices, shape, is_query=True, fill=fill), atol=1e-5)


@pytest.mark.parametrize("k", range(1, 9))
def test_an_empty_cell_takes_the_lowest_token_at_the_least_hamming_distance(k: int) -> None:
    shape = FdeShape(repetitions=2, k_sim=k, d_proj=DIM)
    matrices = draw_matrices(shape, DIM, seed=k)
    points = tokens(k, 6)
    cells = document(points, matrices, shape).reshape(2, 2**k, DIM)
    for r in range(2):
        bits = points @ matrices.planes[:, r * k : (r + 1) * k] > 0
        for cell in range(2**k):
            wanted = np.array([bool(cell >> i & 1) for i in range(k)])
            distances = (bits != wanted).sum(axis=1)
            if distances.min() > 0:
                np.testing.assert_array_equal(cells[r, cell], points[int(np.argmin(distances))])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 30), st.integers(0, 6))
def test_with_fill_the_estimate_lies_between_the_sums_of_minima_and_of_maxima(
    seed: int, n_query: int, n_document: int, k: int
) -> None:
    shape = FdeShape(repetitions=2, k_sim=k, d_proj=DIM)
    matrices = draw_matrices(shape, DIM, seed)
    q, p = tokens(seed + 1, n_query), tokens(seed + 2, n_document)
    estimate = float(query(q, matrices, shape) @ document(p, matrices, shape)) / shape.repetitions
    products = q @ p.T
    assert products.min(axis=1).sum() - 1e-4 <= estimate <= products.max(axis=1).sum() + 1e-4


def test_without_fill_the_estimate_may_exceed_chamfer() -> None:
    shape = FdeShape(repetitions=1, k_sim=1, d_proj=DIM)
    matrices = draw_matrices(shape, DIM, seed=1)
    point = tokens(3, 1)
    assert chamfer(-point, point) == pytest.approx(-1)
    assert float(query(-point, matrices, shape) @ document(point, matrices, shape, fill=False)) == 0.0
    assert float(query(-point, matrices, shape) @ document(point, matrices, shape)) == pytest.approx(-1)


@pytest.mark.parametrize("k", range(9))
def test_a_document_of_one_token_is_exact(k: int) -> None:
    shape = FdeShape(repetitions=3, k_sim=k, d_proj=DIM)
    matrices = draw_matrices(shape, DIM, seed=k)
    q, p = tokens(1, 7), tokens(2, 1)
    estimate = float(query(q, matrices, shape) @ document(p, matrices, shape)) / shape.repetitions
    assert estimate == pytest.approx(chamfer(q, p), abs=1e-4)


def test_a_single_cell_scores_the_mean_of_the_document() -> None:
    shape = FdeShape(repetitions=2, k_sim=0, d_proj=DIM)
    matrices = draw_matrices(shape, DIM, seed=1)
    q, p = tokens(1, 5), tokens(2, 9)
    estimate = float(query(q, matrices, shape) @ document(p, matrices, shape)) / shape.repetitions
    assert estimate == pytest.approx(float((q @ p.mean(axis=0)).sum()), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_query_side_is_linear(shape: FdeShape) -> None:
    matrices = draw_matrices(shape, DIM, seed=3)
    a, b = tokens(1, 4), tokens(2, 11)
    both = query(np.concatenate([a, b]), matrices, shape)
    np.testing.assert_allclose(both, query(a, matrices, shape) + query(b, matrices, shape), atol=1e-5)
    assert not query(a[:0], matrices, shape).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_order_of_tokens_and_repeating_all_of_them_changes_no_document(shape: FdeShape) -> None:
    matrices = draw_matrices(shape, DIM, seed=4)
    p = tokens(5, 13)
    # Without ties in the fill, whose winner is the lowest token number: no fill.
    expected = document(p, matrices, shape, fill=False)
    shuffled = document(np.random.default_rng(1).permutation(p), matrices, shape, fill=False)
    repeated = document(np.concatenate([p, p, p]), matrices, shape, fill=False)
    np.testing.assert_allclose(shuffled, expected, atol=1e-5)
    np.testing.assert_allclose(repeated, expected, atol=1e-5)
    np.testing.assert_allclose(query(np.concatenate([p, p]), matrices, shape), 2 * query(p, matrices, shape), atol=1e-5)


@pytest.mark.parametrize("projection", ["dense", "count_sketch"])
def test_the_projection_is_unbiased_and_has_the_stated_variance(projection: str) -> None:
    """Mean <x, y> and variance (|x|^2 |y|^2 + <x, y>^2 - 2 sum x_i^2 y_i^2) / d_proj, over draws of psi."""
    shape = FdeShape(repetitions=4000, k_sim=0, d_proj=6, projection=projection)  # type: ignore[arg-type]
    matrices = draw_matrices(shape, DIM, seed=11)
    x, y = tokens(1, 1), tokens(2, 1)
    blocks = (shape.repetitions, shape.d_proj)
    estimates = (
        query(x, matrices, shape).reshape(blocks).astype(np.float64) * document(y, matrices, shape).reshape(blocks)
    ).sum(axis=1)
    inner = float((x * y).sum())
    variance = (1 + inner**2 - 2 * float((x**2 * y**2).sum())) / shape.d_proj
    assert estimates.mean() == pytest.approx(inner, abs=4 * np.sqrt(variance / len(estimates)))
    assert estimates.var() == pytest.approx(variance, rel=0.15)


def test_bits_differ_with_probability_angle_over_pi() -> None:
    shape = FdeShape(repetitions=2000, k_sim=4, d_proj=1)
    matrices = draw_matrices(shape, DIM, seed=2)
    x, y = tokens(1, 1)[0], tokens(2, 1)[0]
    differ = ((x @ matrices.planes > 0) != (y @ matrices.planes > 0)).mean()
    angle = np.arccos(np.clip(float(x @ y), -1, 1))
    assert differ == pytest.approx(angle / np.pi, abs=4 * np.sqrt(0.25 / 8000))


def test_every_projection_row_is_used_and_no_two_seeds_share_a_repetition() -> None:
    shape = FdeShape(repetitions=6, k_sim=3, d_proj=4)
    drawn = [draw_matrices(shape, DIM, seed) for seed in (1, 2, 3)]
    planes = [matrices.planes[:, r * 3 : (r + 1) * 3].tobytes() for matrices in drawn for r in range(6)]
    assert len(set(planes)) == 18
    assert len({m.projections[r].tobytes() for m in drawn for r in range(6)}) == 18
    for matrices in drawn:
        assert (np.abs(matrices.projections).sum(axis=2) > 0).all()


def test_equal_seeds_give_equal_bits_in_any_batch() -> None:
    shape = FdeShape(repetitions=5, k_sim=4, d_proj=8, final_dim=100)
    sets = [tokens(i, n) for i, n in enumerate([3, 0, 40, 1, 17, 109, 5])]
    matrices, again = draw_matrices(shape, DIM, 9), draw_matrices(shape, DIM, 9)
    together = encode_documents(*ragged(*sets), matrices, shape)
    encoded_queries = encode_queries(*ragged(*sets), matrices, shape)
    for i, points in enumerate(sets):
        np.testing.assert_array_equal(together[i], document(points, again, shape))
        np.testing.assert_array_equal(encoded_queries[i], query(points, again, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_c_loops_and_their_twin_agree(shape: FdeShape, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = draw_matrices(shape, DIM, 5)
    values, offsets = ragged(*(tokens(n, n) for n in (1, 0, 64, 65, 109, 3, 200, 16, 8, 9, 12, 13)))
    mine = [encode_documents(values, offsets, matrices, shape, fill=fill) for fill in (True, False)]
    mine.append(encode_queries(values, offsets, matrices, shape))
    monkeypatch.setattr(_native, "library", lambda: None)
    twin = [encode_documents(values, offsets, matrices, shape, fill=fill) for fill in (True, False)]
    twin.append(encode_queries(values, offsets, matrices, shape))
    for ours, other in zip(mine, twin, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-22, 1e-40, 1e18, 1e37])
def test_signs_are_exact_however_near_a_plane_a_token_lies(size: float) -> None:
    """Tokens within one float of a plane: no float32 product could decide their side."""
    shape = FdeShape(repetitions=2, k_sim=6, d_proj=1)
    matrices = draw_matrices(shape, DIM, 8)
    points = tokens(1, 60)
    for i, point in enumerate(points):
        plane = matrices.planes[:, i % 12]
        point -= np.float32(plane @ point / (plane @ plane)) * plane
    points = np.concatenate([points * np.float32(size), np.zeros((1, DIM), np.float32)])
    sides = (points[:, :, None].astype(np.float64) * matrices.planes.astype(np.float64)).sum(axis=1) > 0
    for point, point_sides in zip(points, sides, strict=True):
        cells = np.abs(query(point[None], matrices, shape)).reshape(2, 64)
        expected = [int((point_sides[r * 6 : r * 6 + 6] << np.arange(6)).sum()) for r in range(2)]
        if point.any() and cells.any():
            assert [int(np.argmax(row)) for row in cells] == expected
        assert _numba_fde.side(point, np.ascontiguousarray(matrices.planes[:, 3])) == pytest.approx(
            float(point.astype(np.float64) @ matrices.planes[:, 3].astype(np.float64)), rel=1e-9, abs=1e-9 * size
        )


def test_the_last_projection_keeps_inner_products_on_average() -> None:
    raw = FdeShape(repetitions=4, k_sim=3, d_proj=8)
    q, p = tokens(1, 8), tokens(2, 20)
    matrices = draw_matrices(raw, DIM, 1)
    exact = float(query(q, matrices, raw) @ document(p, matrices, raw))
    short = FdeShape(repetitions=4, k_sim=3, d_proj=8, final_dim=64)
    estimates = []
    for seed in range(400):
        other = draw_matrices(short, DIM, seed)
        drawn = FdeMatrices(matrices.planes, matrices.projections, other.final_slots, other.final_signs)
        estimates.append(float(query(q, drawn, short) @ document(p, drawn, short)))
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * np.std(estimates) / 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_sim": 17}, "k_sim 17"),
        ({"repetitions": 0}, "repetitions 0"),
        ({"repetitions": 200, "k_sim": 10}, r"3,276,800 dimensions, the limit is 1,048,576"),
        ({"final_dim": 20_000}, "final_dim 20000 is above the 10240"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        FdeShape(**change)


def test_tokens_that_do_not_fit_are_refused() -> None:
    shape = FdeShape(repetitions=1, k_sim=2, d_proj=4)
    matrices = draw_matrices(shape, DIM, 1)
    with pytest.raises(InvalidInput, match=r"\[3, 8\], the encoding reads \[T, 32\]"):
        document(tokens(1, 3, 8), matrices, shape)
    for bad, at in itertools.product([np.nan, np.inf], [0, 4]):
        points = tokens(1, 5)
        points[at, 3] = bad
        with pytest.raises(InvalidInput, match=f"token vector {at} is not finite"):
            query(points, matrices, shape)
    with pytest.raises(InvalidInput, match="d_proj 64 is above the 32"):
        draw_matrices(FdeShape(d_proj=64), DIM, 1)
