"""The stages that call a cross-encoder: retrieval within a budget of calls (`cur`), and reranking.

No pair is scored twice for one request: reranking reuses the scores that `cur` computed with the same model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import islice

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import PairReranker, Reranker
from chamfer.core.types import F32, I64, Candidates
from chamfer.indexing.families.cur.search import CurSearch
from chamfer.indexing.families.cur.search import search as cur_search
from chamfer.service.search.channels import CollectionView, SearchChannel
from chamfer.service.search.deadlines import DurationEstimate, exceeded, fits
from chamfer.service.search.fusion import blend, scored_rows_first
from chamfer.service.search.in_flight import ExactScores, InFlightSearch, StageScores
from chamfer.service.search.pair_scoring import QueryPairs, score_in_time
from chamfer.service.search.presets import ResolvedPlan
from chamfer.service.search.stage_runner import StageRunner, grouped


class CrossEncoderStages:
    """Both stages over one collection and its rerankers."""

    def __init__(
        self,
        collection: CollectionView,
        channels: Mapping[str, SearchChannel],
        rerankers: Mapping[str, Reranker],
        stages: StageRunner,
    ) -> None:
        self._collection = collection
        self._channels = channels
        self._rerankers = rerankers
        self._pair_rerankers = {name: each for name, each in rerankers.items() if isinstance(each, PairReranker)}
        self._stages = stages
        self._seconds_per_pair: defaultdict[str, DurationEstimate] = defaultdict(DurationEstimate)
        self.cur_models = _cur_models(channels, rerankers)

    def expect_images(self, plan: ResolvedPlan) -> None:
        """Raises InvalidInput unless the plan has a cross-encoder and all of its cross-encoders read images."""
        names = [plan.plan.rerank.model] if plan.plan.rerank else []
        names += [self.cur_models[plan.plan.cur.channel]] if plan.plan.cur else []
        text_only = [name for name in names if not self._rerankers[name].reads_images]
        if text_only or not names:
            reason = f"reranker {text_only[0]} reads text only" if text_only else "it has no reranker"
            readers = ", ".join(name for name, each in self._rerankers.items() if each.reads_images) or "none"
            raise InvalidInput(
                f"the query has an image, but plan {plan.name} cannot read it: {reason}; loaded rerankers that read "
                f"images: {readers} (models.rerankers)"
            )

    def retrieve(self, searches: list[InFlightSearch]) -> None:
        """Stage `cur`: a search whose deadline passes keeps the rounds that were completed."""
        for search in searches:
            if search.plan.plan.cur is None:
                continue
            stage = f"cur:{search.cur_plan.channel}"
            in_time = self._stages.in_time(stage, [search], needed=lambda s: s.ranked is None)
            self._stages.attempt(stage, in_time, partial(self._retrieve, stage))
            if search.result is None and search.ranked is None:
                search.result = exceeded("any document was scored")

    def _retrieve(self, stage: str, group: list[InFlightSearch]) -> None:
        for search in group:
            plan = search.cur_plan
            model = self.cur_models[plan.channel]
            reranker, deadline = self._rerankers[model], search.request.deadline
            before = search.ranked if search.ranked is not None else _NO_CANDIDATES
            answer = cur_search(
                self._channels[plan.channel].required_anchor_scores(),
                lambda rows, r=reranker, s=search: r.score(s.query, self._collection.documents(rows)),  # type: ignore[misc]
                CurSearch(method=plan.method, budget=plan.budget, rounds=plan.rounds),
                seeds=before if plan.seeded and before.depth else None,
                allowed=search.allowed,
                in_time=lambda d=deadline: fits(d, self._stages.clock()),  # type: ignore[misc]
            )
            if not answer.complete:
                search.degraded.append(stage)
            if not answer.calls and not before.depth and not answer.complete:
                continue
            search.exact_scores = ExactScores(
                model, dict(zip(answer.rows.tolist(), answer.scores.tolist(), strict=True))
            )
            ranked = scored_rows_first(before, answer.rows, answer.scores)
            search.add_scores(StageScores("cur", plan.channel, answer.rows, answer.scores, ranked, answer.estimates))
            _blend_last(search, plan.interpolate, plan.channel, before)

    def rerank(self, searches: list[InFlightSearch]) -> None:
        """Stage `rerank`: the first documents of each search; all searches of a model together."""
        pending = [s for s in searches if s.plan.plan.rerank is not None and s.current.depth]
        for group in grouped(pending, lambda s: s.rerank_plan.model):
            name = group[0].rerank_plan.model
            stage = f"rerank:{name}"
            if name in self._pair_rerankers:  # cut at the deadline, so it starts as long as any time is left
                in_time = self._stages.in_time(stage, group, needed=lambda _: True)
                self._stages.attempt(stage, in_time, partial(self._rerank_pairs, self._pair_rerankers[name], stage))
                continue
            for search in group:
                in_time = self._stages.in_time(stage, [search], needed=lambda _: False)
                self._stages.attempt(stage, in_time, partial(self._rerank_list, self._rerankers[name]))

    def _rerank_pairs(self, reranker: PairReranker, stage: str, group: list[InFlightSearch]) -> None:
        """The pairs of all searches together; a search whose deadline passes keeps the scores so far."""
        heads = [search.current.of(0)[0][: search.rerank_plan.depth] for search in group]
        unscored = [_without_exact_scores(search, head) for search, head in zip(group, heads, strict=True)]
        documents = iter(self._collection.documents(np.concatenate(unscored)))
        queries = [
            QueryPairs(search.query, list(islice(documents, len(rows))), search.request.deadline)
            for search, rows in zip(group, unscored, strict=True)
        ]
        score_in_time(reranker, queries, self._seconds_per_pair[stage], self._stages.clock)
        for search, head, rows, pairs in zip(group, heads, unscored, queries, strict=True):
            if pairs.error is not None:
                search.result = pairs.error
                continue
            if pairs.unfinished:
                search.degraded.append(stage)
            scores = {**_reusable_scores(search), **dict(zip(rows.tolist(), pairs.scores, strict=False))}
            scored = head[[row in scores for row in head.tolist()]] if len(head) else head
            if len(scored):
                _add_reranking(search, scored, np.array([scores[row] for row in scored.tolist()], dtype=np.float32))

    def _rerank_list(self, reranker: Reranker, group: list[InFlightSearch]) -> None:
        for search in group:
            rows = search.current.of(0)[0][: search.rerank_plan.depth]
            _add_reranking(search, rows, reranker.score(search.query, self._collection.documents(rows)))


_NO_CANDIDATES = Candidates(np.empty((1, 0), dtype=np.int64), np.empty((1, 0), dtype=np.float32))


def _cur_models(channels: Mapping[str, SearchChannel], rerankers: Mapping[str, Reranker]) -> dict[str, str]:
    """Channel of family `cur` -> the name of the loaded reranker whose scores it stores."""
    by_fingerprint = {reranker.fingerprint: name for name, reranker in rerankers.items()}
    return {
        name: by_fingerprint[channel.anchor_scores.fingerprint]
        for name, channel in channels.items()
        if channel.anchor_scores is not None and channel.anchor_scores.fingerprint in by_fingerprint
    }


def _without_exact_scores(search: InFlightSearch, rows: I64) -> I64:
    """The rows that the reranking's model has not scored yet."""
    scores = _reusable_scores(search)
    return rows[[row not in scores for row in rows.tolist()]] if scores else rows


def _reusable_scores(search: InFlightSearch) -> Mapping[int, float]:
    """The scores by row that an earlier stage computed with the reranking's model."""
    exact = search.exact_scores
    return exact.scores if exact is not None and exact.model == search.rerank_plan.model else {}


def _add_reranking(search: InFlightSearch, rows: I64, scores: F32) -> None:
    plan, before = search.rerank_plan, search.current
    search.add_scores(StageScores("rerank", plan.model, rows, scores, scored_rows_first(before, rows, scores)))
    _blend_last(search, plan.interpolate, plan.model, before)


def _blend_last(search: InFlightSearch, share: float | None, name: str, before: Candidates) -> None:
    """Interpolates the last stage's scores with those of the ranking before it, over the rows that the stage scored.

    A row that the ranking before did not contain takes its lowest score.
    """
    last = search.stage_scores[-1]
    rows, scores = before.of(0)
    if share is None or not len(rows) or not len(last.rows):
        return
    by_row = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    lowest = float(scores.min())
    earlier = np.array([by_row.get(row, lowest) for row in last.rows.tolist()], dtype=np.float32)
    blended = blend(share, last.scores, earlier)
    search.add_scores(StageScores("blend", name, last.rows, blended, scored_rows_first(before, last.rows, blended)))
