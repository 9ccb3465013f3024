"""Search with a budget of cross-encoder calls: score a few items, estimate the rest, score the most promising ones.

    anncur   the fixed anchor items, one fit, then the best estimates (Yadav et al., EMNLP 2022, arXiv 2210.12579)
    adacur   rounds: each fits all scores so far and adds the best estimates (arXiv 2305.02996)
    axn      the same rounds, but the columns are fitted to what a first-stage score leaves unexplained, with a ridge
             penalty: with few scores the fit stays near the first stage (arXiv 2405.03651, there in the space of a
             dual encoder)

The result contains every exact score; no pair is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, I64, Bool, Candidates
from chamfer.indexing.families.cur.family import CurRetriever
from chamfer.indexing.kernels.cur import F64, QueryFit, fit_query
from chamfer.indexing.kernels.topk import best

RowScorer = Callable[[I64], F32]
"""Exact scores f32 [n] of rows i64 [n] for the query at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurSearch:
    """budget: total cross-encoder calls; rounds: of adacur and axn; anchor_share: of the budget, for anncur's items."""

    method: Literal["anncur", "adacur", "axn"] = "axn"
    budget: int = 100
    rounds: int = 5
    anchor_share: float = 0.5

    def __post_init__(self) -> None:
        if self.budget < 1 or self.rounds < 1 or not 0 < self.anchor_share <= 1:
            raise InvalidInput(
                f"cur budget {self.budget}, rounds {self.rounds}, anchor_share {self.anchor_share}; expected "
                "budget >= 1, rounds >= 1, 0 < anchor_share <= 1"
            )


@dataclass(frozen=True, slots=True)
class CurAnswer:
    """rows i64 [n] by descending exact score f32 [n]; their estimates f32 [n] before scoring, NaN in the first round.

    `calls` counts all calls, also those for anchor items that the filter excludes. `complete` is False if time ran
    out.
    """

    rows: I64
    scores: F32
    estimates: F32
    calls: int
    complete: bool


def search(
    retriever: CurRetriever,
    score_rows: RowScorer,
    options: CurSearch,
    *,
    seeds: Candidates | None = None,
    allowed: Bool | None = None,
    in_time: Callable[[], bool] = lambda: True,
) -> CurAnswer:
    """At most `budget` allowed rows with their exact scores, best first.

    seeds     one query's first-stage ranking: the first round scores its best rows, and axn uses its scores as a guess
    in_time   called before each round; once it returns False, the search returns the scores so far

    Raises InvalidInput for a score that is not finite.
    """
    state = _State(retriever, score_rows, retriever.usable(allowed))
    guess = None
    if seeds is not None and options.method == "axn":
        guess = _guess(seeds, len(retriever))
    first, n_rounds = _first(retriever, options, seeds, state.usable)
    complete = in_time()
    if complete:
        state.score(first, None)
    step = -(-(options.budget - len(first)) // max(n_rounds, 1))
    while complete and 0 < state.calls < options.budget:
        fit = state.fit(options, guess)
        estimates = retriever.estimates(fit, None if guess is None else guess.astype(np.float32))
        estimates[~state.usable] = -np.inf
        estimates[state.rows] = -np.inf
        promising = best(estimates, min(step, options.budget - state.calls))
        if not len(promising):
            break
        complete = in_time()
        if complete:
            state.score(promising, estimates)
    return state.answer(complete)


class _State:
    """Rows scored so far for one query."""

    def __init__(self, retriever: CurRetriever, score_rows: RowScorer, usable: Bool) -> None:
        self.usable = usable
        self.rows = np.empty(0, dtype=np.int64)
        self.calls = 0
        self._scores = np.empty(0, dtype=np.float32)
        self._estimates = np.empty(0, dtype=np.float32)
        self._retriever = retriever
        self._score_rows = score_rows

    def score(self, rows: I64, estimates: F32 | None) -> None:
        scores = np.asarray(self._score_rows(rows), dtype=np.float32)
        if scores.shape != rows.shape or not np.isfinite(scores).all():
            raise InvalidInput(f"the reranker gave {scores.shape} scores for {len(rows)} documents, or some not finite")
        before = np.full(len(rows), np.nan, dtype=np.float32) if estimates is None else estimates[rows]
        self.rows = np.concatenate([self.rows, rows])
        self._scores = np.concatenate([self._scores, scores])
        self._estimates = np.concatenate([self._estimates, before])
        self.calls += len(rows)

    def fit(self, options: CurSearch, guess: F64 | None) -> QueryFit:
        config = self._retriever.config
        shrunk = options.method == "axn"
        return fit_query(
            self._retriever.columns(self.rows),
            self._scores,
            cutoff=0.0 if shrunk else config.cutoff,
            ridge=config.ridge if shrunk else 0.0,
            guess=None if guess is None else guess[self.rows],
        )

    def answer(self, complete: bool) -> CurAnswer:
        usable = np.flatnonzero(self.usable[self.rows])
        order = usable[np.lexsort((self.rows[usable], -self._scores[usable]))]
        return CurAnswer(self.rows[order], self._scores[order], self._estimates[order], self.calls, complete)


def _first(retriever: CurRetriever, options: CurSearch, seeds: Candidates | None, usable: Bool) -> tuple[I64, int]:
    """(the rows of the first round, the number of rounds that follow)."""
    budget = options.budget
    if options.method == "anncur":
        return retriever.anchor_items[: max(1, int(budget * options.anchor_share))], 1
    size = max(1, budget // options.rounds)
    ranked = retriever.anchor_items if seeds is None else seeds.of(0)[0]
    first = ranked[usable[ranked]][:size]
    if not len(first):  # the filter excludes all of them: begin with any allowed rows
        first = np.flatnonzero(usable)[:size].astype(np.int64)
    return first, options.rounds - 1


def _guess(seeds: Candidates, n_rows: int) -> F64:
    """The first stage's score of every row f64 [N]; rows that it did not return get its lowest score."""
    rows, scores = seeds.of(0)
    guess = np.full(n_rows, float(scores.min(initial=np.inf)) if len(rows) else 0.0)
    guess[rows] = scores
    return guess
