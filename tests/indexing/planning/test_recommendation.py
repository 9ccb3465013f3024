"""The recommendation on constructed cases, the extrapolation, and the settings it writes."""

from __future__ import annotations

import numpy as np
import pytest

from chamfer.core.types import Candidates, Document, Encoding, Query, TokenVectors
from chamfer.indexing.planning.planner import EXACT, Costs, Measured, Sample, Source
from chamfer.indexing.planning.recommendation import (
    Budgets,
    Option,
    advise,
    needed_at,
    options,
    pareto,
    recommend,
    remarks,
    settings_of,
)

N = 1000
EMPTY = Candidates(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32))
TOKENS = Encoding(
    np.zeros(N, np.int32),
    np.zeros(N, bool),
    tokens=TokenVectors(np.zeros((0, 2), np.float32), np.zeros(N + 1, np.int64)),
)
SAMPLE = Sample([Document(str(i)) for i in range(N)], [Query("q", "x")], TOKENS, TOKENS, EMPTY, 10.0, 5000.0)


def measured(name: str, ranks: list[int], exponent: float = 0.0, size: float = 100.0, ms: float = 1.0) -> Measured:
    source = EXACT if name == "exact" else Source(name, name.split()[0])
    table = np.array([ranks])
    return Measured(name, (source,), (EMPTY,), table, table, exponent, Costs(size, 0.0, 0.0, ms))


PERFECT = measured("exact", list(range(1, 11)), size=5000.0, ms=10.0)
GOOD = measured("dense", [*range(1, 10), 180], ms=1.0)
QUICK = measured("fde 2560", [1, 2, 3, 4, 5, 6, 7, 8, 60, 300], ms=0.2)


def option(name: str, recall: float, ms: float, size: float) -> Option:
    return Option(measured(name, [1]), 100, recall, recall, ms, size)


def test_an_option_costs_its_scan_at_full_size_and_maxsim_over_its_candidates() -> None:
    by_depth = {o.depth: o for o in options([GOOD], SAMPLE, 4 * N)}
    assert set(by_depth) == {50, 100, 200, 500, 1000}
    assert by_depth[200].query_ms == pytest.approx(4 * 1.0 + 10.0 * 0.2)
    assert by_depth[200].bytes_per_document == 5100
    assert by_depth[100].recall == pytest.approx(0.9)
    assert by_depth[200].recall == 1.0


def test_recall_falls_with_the_size_by_the_measured_growth() -> None:
    growing = measured("dense", [*range(1, 10), 180], exponent=0.5)
    [at_200] = [o for o in options([growing], SAMPLE, 4 * N) if o.depth == 200]
    assert at_200.recall == pytest.approx(0.9)  # 200 of 4,000 are worth 100 of 1,000
    assert at_200.recall_at_worst == pytest.approx(0.9)
    assert needed_at(growing, SAMPLE, 4 * N) == {0.9: 18, 0.95: 360, 0.99: 360}
    assert needed_at(growing, SAMPLE, N) == {0.9: 9, 0.95: 180, 0.99: 180}


def test_exact_maxsim_stays_exact_and_carries_no_second_copy_of_the_tokens() -> None:
    [direct] = options([PERFECT], SAMPLE, 50 * N)
    assert (direct.recall, direct.recall_at_worst, direct.bytes_per_document) == (1.0, 1.0, 5000)
    assert direct.query_ms == pytest.approx(500)


def test_centroids_count_their_token_vectors_once_and_codes_what_they_lose() -> None:
    source = Source("centroids 64, int4", "multivector", {"centroids": 64, "storage": "int4"})
    table = np.array([list(range(1, 11))])
    coded = Measured("c", (source,), (EMPTY,), table, table, 0.0, Costs(700.0, query_ms=0.5), EMPTY, 0.9, 2.0)
    by_depth = {o.depth: o for o in options([coded], SAMPLE, N)}
    assert by_depth[100].recall == pytest.approx(0.9)
    assert by_depth[100].bytes_per_document == 700
    assert by_depth[100].query_ms == pytest.approx(0.5 + 2.0 * 0.1)
    tree = settings_of(by_depth[200], "mini")
    assert tree["build"]["channels"] == ["multivector"]
    assert tree["build"]["parameters"] == {
        "multivector": {"centroids": 64, "storage": "int4", "candidates": 200, "margin": 1.0}
    }
    assert tree["plans"]["late"] == {"channels": {"multivector": {"depth": 100}}}


def test_a_union_with_centroids_rescores_what_both_found() -> None:
    both_sources = Source("dense", "dense"), Source("centroids 64", "multivector", {"centroids": 64})
    both = Measured("x", both_sources, (EMPTY, EMPTY), *[np.zeros((1, 1), int)] * 2, 0.0, Costs(1.0))
    assert options([both], SAMPLE, N)[0].bytes_per_document == 1.0
    tree = settings_of(Option(both, 200, 1.0, 1.0, 1.0, 1.0), "mini")
    assert tree["build"]["parameters"]["multivector"] == {"centroids": 64, "candidates": 100, "margin": 1.0}
    assert tree["plans"]["late"]["channels"] == {"dense": {"depth": 100}, "multivector": {"depth": 100}}
    assert tree["plans"]["late"]["rescore"] == {"channel": "multivector", "depth": 200}


def test_the_fastest_that_reaches_the_floor_is_recommended() -> None:
    choices = options([PERFECT, GOOD, QUICK], SAMPLE, N)
    best, reason = recommend(choices, Budgets(0.99))
    assert best is not None
    assert (best.measured.name, best.depth) == ("dense", 200)
    assert "99%" in reason
    loose, _ = recommend(choices, Budgets(0.8))
    assert loose is not None
    assert (loose.measured.name, loose.depth) == ("fde 2560", 50)


def test_of_two_about_equally_fast_the_smaller_is_recommended() -> None:
    choices = [option("a", 0.995, 1.00, 900), option("b", 0.991, 1.05, 300), option("c", 1.0, 1.5, 10)]
    assert recommend(choices, Budgets(0.99))[0] is choices[1]


def test_budgets_exclude_options_and_the_best_of_the_rest_is_reported_to_miss_the_floor() -> None:
    choices = [option("big", 1.0, 1.0, 900), option("slow", 1.0, 9.0, 100), option("weak", 0.7, 1.0, 100)]
    best, reason = recommend(choices, Budgets(0.99, ms=2.0, bytes=500))
    assert best is choices[2]
    assert "nothing within the budgets finds 99%" in reason
    assert recommend(choices, Budgets(0.99, ms=10.0, bytes=500))[0] is choices[1]


def test_budgets_that_no_option_meets_report_the_smallest_that_would_do() -> None:
    best, reason = recommend([option("a", 1.0, 3.0, 900), option("b", 1.0, 4.0, 700)], Budgets(0.99, bytes=10))
    assert best is None
    assert "700 bytes" in reason
    assert "3 ms" in reason
    assert "--budget-bytes" in reason


def test_the_pareto_front_holds_the_options_that_no_other_beats() -> None:
    a, b, c = option("a", 0.5, 1.0, 1), option("b", 0.4, 2.0, 1), option("c", 0.9, 3.0, 1)
    assert pareto([c, b, a]) == [a, c]


def test_the_failures_of_plain_encodings_are_remarked() -> None:
    plain = measured("fde 2560", [*range(1, 6), *[500] * 5])
    centred = measured("fde 2560 centred", [*range(1, 9), 500, 500])
    text = " ".join(remarks([plain, centred, GOOD]))
    assert "holds only 50.0%" in text
    assert "centring moves fde 2560 by +30.0%" in text
    assert "the dense vector" in text
    assert remarks([measured("fde 2560", list(range(1, 11)))]) == []


def test_the_settings_build_the_channels_and_search_to_the_depth() -> None:
    fde_source = Source("fde 2560", "fde", {"k_sim": 4})
    both = Measured(
        "x", (Source("dense", "dense"), fde_source), (EMPTY, EMPTY), *[np.zeros((1, 1), int)] * 2, 0.0, Costs(1.0)
    )
    tree = settings_of(Option(both, 200, 1.0, 1.0, 1.0, 1.0), "mini")
    assert tree["build"]["channels"] == ["dense", "fde", "multivector"]
    assert tree["build"]["parameters"] == {"fde": {"k_sim": 4}}
    assert tree["build"]["floor"] == {"recall": 0.0}
    assert tree["plans"]["late"]["channels"] == {"dense": {"depth": 100}, "fde": {"depth": 100}}
    assert tree["plans"]["late"]["rescore"] == {"channel": "multivector", "depth": 200}


def test_a_pooled_direct_option_names_the_pooled_encoder() -> None:
    source = Source("multivector c0x8", "multivector", pooling="c0x8")
    pooled = Measured("m", (source,), (EMPTY,), *[np.zeros((1, 1), int)] * 2, 0.0, Costs(1.0))
    tree = settings_of(Option(pooled, 10, 1.0, 1.0, 1.0, 1.0), "mini")
    assert tree["models"] == {"encoder": "mini+c0x8"}
    assert tree["build"] == {"channels": ["multivector"]}


@pytest.mark.parametrize("pooling", ["", "w0x75p"])
def test_a_direct_option_is_built_with_the_codes_that_were_measured(pooling: str) -> None:
    source = Source("multivector int4", "multivector", {"storage": "int4"}, pooling=pooling)
    coded = Measured("m", (source,), (EMPTY,), *[np.zeros((1, 1), int)] * 2, 0.0, Costs(1.0))
    tree = settings_of(Option(coded, 10, 1.0, 1.0, 1.0, 1.0), "mini")
    assert tree["build"] == {"channels": ["multivector"], "parameters": {"multivector": {"storage": "int4"}}}


def test_advice_holds_the_choice_for_the_whole_corpus() -> None:
    advice = advise(SAMPLE, [PERFECT, GOOD], 2 * N, Budgets(0.99))
    assert advice.chosen in advice.options
    assert advice.n_documents == 2 * N
