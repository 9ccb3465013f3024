"""Geometry of embeddings against hand computations, and the collapse that it must detect."""

from __future__ import annotations

import numpy as np
import pytest

from chamfer.core.errors import InvalidInput
from chamfer.models.networks import embedding_diagnostics


def random_unit(n: int, d: int, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((n, d)) + shift
    return embedding_diagnostics.unit_rows(values.astype(np.float32))


def test_the_effective_rank_counts_directions() -> None:
    assert embedding_diagnostics.effective_rank(np.array([4.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert embedding_diagnostics.effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3.0)
    # p = 3/4, 1/4: exp(0.75 ln(4/3) + 0.25 ln 4) = (4/3)^0.75 4^0.25
    assert embedding_diagnostics.effective_rank(np.array([3.0, 1.0])) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_the_participation_ratio_by_hand() -> None:
    assert embedding_diagnostics.participation(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert embedding_diagnostics.participation(np.array([5.0, 5.0, 0.0])) == pytest.approx(2.0)


def test_the_geometry_of_two_orthogonal_vectors_by_hand() -> None:
    measured = embedding_diagnostics.geometry(np.eye(2, dtype=np.float32))
    assert measured.effective_rank == pytest.approx(2.0)
    assert measured.mean_cosine == 0.0
    assert measured.uniformity == pytest.approx(-4.0)  # |x - y|^2 = 2
    assert measured.same_side == pytest.approx(0.5)
    assert measured.dimension_use == pytest.approx(1.0)


def test_alignment_is_the_squared_distance_of_pairs() -> None:
    a, b = random_unit(50, 8), random_unit(60, 8)[10:]
    expected = ((a.astype(float) - b) ** 2).sum(axis=1).mean()
    assert embedding_diagnostics.alignment((a.astype(float) * b).sum(axis=1)) == pytest.approx(expected, rel=1e-6)


def test_the_mean_cosine_agrees_with_the_norm_of_the_mean() -> None:
    unit = random_unit(200, 16, shift=0.3)
    n = len(unit)
    total = unit.astype(np.float64).sum(axis=0)
    assert embedding_diagnostics.geometry(unit).mean_cosine == pytest.approx(
        (total @ total - n) / (n * (n - 1)), rel=1e-5
    )


def test_same_side_is_what_random_hyperplanes_do() -> None:
    unit = random_unit(40, 8, shift=0.5)
    sides = unit @ np.random.default_rng(1).standard_normal((8, 20_000)) > 0
    together = np.mean([(sides[i] == sides[j]).mean() for i in range(40) for j in range(i)])
    assert embedding_diagnostics.geometry(unit).same_side == pytest.approx(together, abs=0.01)


def test_collapse_is_seen_along_an_axis_and_rotated() -> None:
    line = np.zeros((100, 32), dtype=np.float32)
    line[:, 0] = 1.0
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((32, 32)))[0].astype(np.float32)
    for collapsed in (line, embedding_diagnostics.unit_rows(line @ rotation)):
        measured = embedding_diagnostics.geometry(collapsed)
        assert measured.effective_rank == pytest.approx(1.0, abs=1e-3)
        assert measured.mean_cosine == pytest.approx(1.0, abs=1e-5)
        assert measured.uniformity == pytest.approx(0.0, abs=1e-3)
        assert "train against collapse" in embedding_diagnostics.meaning_for_fde(measured)


def test_measures_but_dimension_use_do_not_depend_on_the_axes() -> None:
    unit = random_unit(300, 16, shift=0.2)
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0].astype(np.float32)
    a, b = (
        embedding_diagnostics.geometry(unit),
        embedding_diagnostics.geometry(embedding_diagnostics.unit_rows(unit @ rotation)),
    )
    for name in ("effective_rank", "participation", "mean_cosine", "uniformity", "same_side"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4), name


def test_spread_vectors_are_good_for_fde_and_a_cone_is_not() -> None:
    assert "separate tokens well" in embedding_diagnostics.meaning_for_fde(
        embedding_diagnostics.geometry(random_unit(500, 32))
    )
    assert "crowded" in embedding_diagnostics.meaning_for_fde(
        embedding_diagnostics.geometry(random_unit(500, 32, shift=0.8))
    )


def test_zero_rows_are_ignored_and_a_single_vector_is_refused() -> None:
    assert len(embedding_diagnostics.unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]]))) == 1
    with pytest.raises(InvalidInput, match="at least 2"):
        embedding_diagnostics.geometry(np.ones((1, 3), dtype=np.float32))
