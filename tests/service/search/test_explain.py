"""The columns of a pool where a stage has nothing to say."""

from __future__ import annotations

import numpy as np

from chamfer.core.types import Candidates, Query
from chamfer.service.search.explain import pool_features
from chamfer.service.search.in_flight import InFlightSearch, StageScores
from chamfer.service.search.plans import parse_plan
from chamfer.service.search.presets import ResolvedPlan
from chamfer.service.search.request import SearchRequest


def test_a_stage_that_was_cut_before_its_first_score_has_ranks_and_no_scores() -> None:
    plan = ResolvedPlan("custom", parse_plan({"channels": {"dense": {}}}))
    ranked = Candidates(np.array([[4, 2]]), np.array([[2.0, 1.0]], dtype=np.float32))
    search = InFlightSearch(SearchRequest(query="fox"), plan, Query("query", "fox"), runs={"dense": ranked})
    nothing = np.empty(0, dtype=np.float32)
    search.add_scores(StageScores("cur", "cur", np.empty(0, dtype=np.int64), nothing, ranked, nothing))
    features = pool_features(search, np.array([4, 2]))
    assert features["cur.rank"].tolist() == [1, 2]
    assert "cur.score" not in features
