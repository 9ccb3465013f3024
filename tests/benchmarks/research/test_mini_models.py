"""Mean differences over sets, compared with their analytical values."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.research.mini_models import Systems, differences, table


def systems(values: np.ndarray, gains: np.ndarray) -> Systems:
    trained = {str(i): float(v + g) for i, (v, g) in enumerate(zip(values, gains, strict=True))}
    return Systems({"BM25": {str(i): float(v) for i, v in enumerate(values)}, "mini-sparse": trained}, {})


def test_sets_have_equal_weight_and_the_interval_is_that_of_their_mean() -> None:
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=n) * 0.2 for n in (40, 400)]
    noise = [each - each.mean() for each in noise]
    (row,) = differences([systems(rng.random(len(each)), each + g) for each, g in zip(noise, (0.1, 0.3), strict=True)])
    assert row.value == pytest.approx(0.2)
    low, high = (float(part) for part in row.what.partition("[")[2].removesuffix("]").split(" to "))
    deviation = 0.5 * np.sqrt(sum(each.var() / len(each) for each in noise))
    assert low == pytest.approx(0.2 - 1.96 * deviation, abs=0.1 * deviation)
    assert high == pytest.approx(0.2 + 1.96 * deviation, abs=0.1 * deviation)
    assert f"- {row.what}: +0.2000" in table([row])


def test_an_equal_gain_for_every_query_has_no_spread() -> None:
    (row,) = differences([systems(np.linspace(0, 0.5, 30), np.full(30, 0.05))])
    assert "[+0.0500 to +0.0500]" in row.what
