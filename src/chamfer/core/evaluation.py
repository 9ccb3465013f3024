"""Evaluates runs against relevance judgements with ir_measures; significance of differences; TREC run files.

Measures are named as in papers (`nDCG@10`, `R@100`, `AP`, `RR@10`). A run is a sequence of `ScoredDoc`, judgements are
a sequence of `Qrel`: tuples of ir_measures' own shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32

DEFAULT_MEASURES = ("nDCG@10", "R@100")


class ScoredDoc(NamedTuple):
    """One line of a run."""

    query_id: str
    doc_id: str
    score: float


class Qrel(NamedTuple):
    """One relevance judgement: a line of a qrels file."""

    query_id: str
    doc_id: str
    relevance: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Values by measure and query_id; every judged query is present, with 0 if it has no hits."""

    per_query: Mapping[str, Mapping[str, float]]

    @property
    def means(self) -> dict[str, float]:
        return {name: float(np.mean(list(values.values()))) for name, values in self.per_query.items()}


def parse_measures(names: Sequence[str]) -> list[Any]:
    """The measures of ir_measures with these names; InvalidInput for an unknown one."""
    import ir_measures

    measures = []
    for name in names:
        try:
            measures.append(ir_measures.parse_measure(name))
        except (NameError, ValueError, SyntaxError) as error:
            raise InvalidInput(f"unknown measure {name!r}; write it as in nDCG@10, R@100, AP, RR@10, P@5") from error
    return measures


def evaluate(run: Sequence[ScoredDoc], qrels: Sequence[Qrel], measures: Sequence[str] = DEFAULT_MEASURES) -> Evaluation:
    """The value of each measure for each judged query.

    Queries without judgements are ignored; judged queries that are missing from the run count 0. Raises InvalidInput if
    there are no judgements or a measure is unknown.
    """
    import ir_measures

    objects = parse_measures(measures)
    query_ids = sorted({qrel.query_id for qrel in qrels})
    if not query_ids:
        raise InvalidInput("there are no judgements, so nothing can be evaluated; expected at least one qrel")
    values: dict[str, dict[str, float]] = {str(measure): dict.fromkeys(query_ids, 0.0) for measure in objects}
    for metric in ir_measures.iter_calc(objects, qrels, run):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
    return Evaluation(values)


def significance(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> float:
    """Two-sided p-value of the paired randomisation test on the mean difference (Smucker et al., CIKM 2007).

    Uses 10,000 random sign flips drawn with `seed`, or all of them where there are fewer. Raises InvalidInput unless
    both have the same queries.
    """
    from scipy.stats import permutation_test

    if first.keys() != second.keys():
        raise InvalidInput(
            f"significance compares the same queries: the first run has {len(first)}, the second {len(second)}, and "
            f"{len(first.keys() & second.keys())} are in both"
        )
    a = np.array([first[query_id] for query_id in sorted(first)])
    b = np.array([second[query_id] for query_id in sorted(second)])
    if np.array_equal(a, b):
        return 1.0
    if len(a) < 2:
        return 1.0

    def mean_difference(x: Any, y: Any, axis: int) -> Any:
        return np.mean(x - y, axis=axis)

    outcome = permutation_test(
        (a, b),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(outcome.pvalue)


def strictly_falling(scores: F32) -> F32:
    """Scores f32 [K] in rank order, with ties broken by lowering scores to the next smaller float.

    trec_eval ignores the rank column and breaks ties by doc_id; strictly falling scores preserve the ranking.
    """
    falling = np.array(scores, dtype=np.float32)
    for i in range(1, len(falling)):
        if falling[i] >= falling[i - 1]:
            falling[i] = np.nextafter(falling[i - 1], np.float32(-np.inf))
    return falling


def write_run(path: Path, run: Iterable[ScoredDoc], tag: str) -> None:
    """Writes a TREC run file: `qid Q0 docid rank score tag`, with ranks from 1 in the given order."""
    rank: dict[str, int] = {}
    with path.open("w", encoding="utf-8") as file:
        for query_id, doc_id, score in run:
            rank[query_id] = rank.get(query_id, 0) + 1
            file.write(f"{query_id} Q0 {doc_id} {rank[query_id]} {score:.9g} {tag}\n")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, aligned with the input (Scandinavian J. of Statistics, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for position, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[i]))
        adjusted[i] = highest
    return adjusted
