"""The stages that ask a cross-encoder: retrieval within a budget of calls (`cur`), and reranking.

No pair is scored twice for one request: what `cur` has scored is not asked again by a reranking with the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import TypeGuard

import numpy as np

from chamfer.core.errors import DeadlineExceeded, Internal, InvalidInput
from chamfer.core.protocols import PairReranker, Reranker
from chamfer.core.types import F32, I64, Candidates, VectorKind
from chamfer.indexing.families.cur.search import CurSearch
from chamfer.indexing.families.cur.search import search as cur_search
from chamfer.service.reranking.reranker_queue import Ask, Pace, rank_in_time
from chamfer.service.search.fusion import blend, rows_first
from chamfer.service.search.plan_fields import Cur
from chamfer.service.search.plans import Rerank, ResolvedPlan
from chamfer.service.search.request import CollectionView
from chamfer.service.search.stages import Judgement, Known, Search, StageRunner, grouped


class CrossEncoding:
    """Both stages over one collection and its rerankers."""

    def __init__(self, collection: CollectionView, rerankers: Mapping[str, Reranker], stages: StageRunner) -> None:
        self._collection = collection
        self._rerankers = rerankers
        self._stages = stages
        self._paces: dict[str, Pace] = {}
        self.cur_models = _cur_models(collection, rerankers)

    def expect_images(self, plan: ResolvedPlan) -> None:
        """Raises InvalidInput unless the plan's cross-encoders, one at least, read images."""
        names = [plan.plan.rerank.model] if plan.plan.rerank else []
        names += [self.cur_models[plan.plan.cur.channel]] if plan.plan.cur else []
        blind = [name for name in names if not self._rerankers[name].reads_images]
        if blind or not names:
            reason = f"reranker {blind[0]} reads text only" if blind else "it has no reranker"
            readers = ", ".join(name for name, own in self._rerankers.items() if own.reads_images) or "none"
            raise InvalidInput(
                f"the query has an image, and plan {plan.name} cannot look at it: {reason}; rerankers that read images "
                f"here: {readers} (models.rerankers)"
            )

    def retrieve(self, searches: list[Search]) -> None:
        """Stage `cur`: a search whose time runs out keeps the rounds that were made."""
        for search in searches:
            if search.plan.plan.cur is None:
                continue
            stage = f"cur:{_cur_of(search).channel}"
            in_time = self._stages.in_time(stage, [search], needed=lambda s: s.ranked is None)
            self._stages.attempt(stage, in_time, partial(self._retrieve, stage))
            if search.result is None and search.ranked is None:
                search.result = DeadlineExceeded(
                    "the allowed time was over before a document was scored; allow more by timeout_ms"
                )

    def _retrieve(self, stage: str, group: list[Search]) -> None:
        for search in group:
            plan = _cur_of(search)
            model = self.cur_models[plan.channel]
            reranker, deadline = self._rerankers[model], search.request.deadline
            before = search.ranked if search.ranked is not None else _NOTHING
            answer = cur_search(
                self._collection.channels[plan.channel].retriever,
                lambda rows, r=reranker, s=search: r.score(s.query, self._collection.documents(rows)),  # type: ignore[misc]
                CurSearch(method=plan.method, budget=plan.budget, rounds=plan.rounds),
                seeds=before if plan.seeded and before.depth else None,
                allowed=search.allowed,
                in_time=lambda d=deadline: d is None or self._stages.clock() < d,  # type: ignore[misc]
            )
            if not answer.complete:
                search.degraded.append(stage)
            if not answer.calls and not before.depth and not answer.complete:
                continue
            search.known = Known(model, dict(zip(answer.rows.tolist(), answer.scores.tolist(), strict=True)))
            ranked = rows_first(before, answer.rows, answer.scores)
            search.judge(Judgement("cur", plan.channel, answer.rows, answer.scores, ranked, answer.estimates))
            _blend(search, plan.interpolate, plan.channel, before)

    def rerank(self, searches: list[Search]) -> None:
        """Stage `rerank`: the first documents of each search, all searches of a model together."""
        asking = [s for s in searches if s.plan.plan.rerank is not None and s.current.depth]
        for group in grouped(asking, lambda s: _rerank_of(s).model):
            name = _rerank_of(group[0]).model
            stage, reranker = f"rerank:{name}", self._rerankers[name]
            if _judges_pairs(reranker):  # cut where the time ends, so begun as long as there is any
                in_time = self._stages.in_time(stage, group, needed=lambda _: True)
                self._stages.attempt(stage, in_time, partial(self._rerank_pairs, reranker, stage))
                continue
            for search in group:
                in_time = self._stages.in_time(stage, [search], needed=lambda _: False)
                self._stages.attempt(stage, in_time, partial(self._rerank_list, reranker))

    def _rerank_pairs(self, reranker: PairReranker, stage: str, group: list[Search]) -> None:
        """The pairs of all searches together; a search whose time is over keeps the scores that it has."""
        heads = [search.current.of(0)[0][: _rerank_of(search).depth] for search in group]
        unknown = [_unknown(search, head) for search, head in zip(group, heads, strict=True)]
        documents = iter(self._collection.documents(np.concatenate(unknown)))
        asks = [
            Ask(search.query, list(islice(documents, len(rows))), search.request.deadline)
            for search, rows in zip(group, unknown, strict=True)
        ]
        rank_in_time(reranker, asks, self._paces.setdefault(stage, Pace()), self._stages.clock)
        for search, head, rows, ask in zip(group, heads, unknown, asks, strict=True):
            if ask.error is not None:
                search.result = ask.error
                continue
            if ask.open:
                search.degraded.append(stage)
            scores = {**_known(search), **dict(zip(rows.tolist(), ask.scores, strict=False))}
            judged = head[[row in scores for row in head.tolist()]] if len(head) else head
            if len(judged):
                _judged(search, judged, np.array([scores[row] for row in judged.tolist()], dtype=np.float32))

    def _rerank_list(self, reranker: Reranker, group: list[Search]) -> None:
        for search in group:
            rows = search.current.of(0)[0][: _rerank_of(search).depth]
            _judged(search, rows, reranker.score(search.query, self._collection.documents(rows)))


_NOTHING = Candidates(np.empty((1, 0), dtype=np.int64), np.empty((1, 0), dtype=np.float32))


def _cur_models(collection: CollectionView, rerankers: Mapping[str, Reranker]) -> dict[str, str]:
    """Channel of family `cur` -> the name of the loaded reranker whose scores it keeps."""
    by_fingerprint = {reranker.fingerprint: name for name, reranker in rerankers.items()}
    return {
        name: by_fingerprint[channel.retriever.fingerprint]
        for name, channel in collection.channels.items()
        if channel.family.kind is VectorKind.ANCHORS and channel.retriever.fingerprint in by_fingerprint
    }


def _unknown(search: Search, rows: I64) -> I64:
    known = _known(search)
    return rows[[row not in known for row in rows.tolist()]] if known else rows


def _known(search: Search) -> Mapping[int, float]:
    """What the reranking's model has said already, by row."""
    known = search.known
    return known.scores if known is not None and known.model == _rerank_of(search).model else {}


def _judged(search: Search, rows: I64, scores: F32) -> None:
    plan, before = _rerank_of(search), search.current
    search.judge(Judgement("rerank", plan.model, rows, scores, rows_first(before, rows, scores)))
    _blend(search, plan.interpolate, plan.model, before)


def _blend(search: Search, share: float | None, name: str, before: Candidates) -> None:
    """The last judgement's scores interpolated with those of the ranking before it, over the judged rows.

    A row that the ranking before did not hold has its lowest score.
    """
    judgement = search.judgements[-1]
    rows, scores = before.of(0)
    if share is None or not len(rows) or not len(judgement.rows):
        return
    earlier = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    lowest = float(scores.min())
    own = np.array([earlier.get(row, lowest) for row in judgement.rows.tolist()], dtype=np.float32)
    final = blend(share, judgement.scores, own)
    search.judge(Judgement("blend", name, judgement.rows, final, rows_first(before, judgement.rows, final)))


def _cur_of(search: Search) -> Cur:
    cur = search.plan.plan.cur
    if cur is None:
        raise Internal("a search without a cur stage came to it")
    return cur


def _rerank_of(search: Search) -> Rerank:
    rerank = search.plan.plan.rerank
    if rerank is None:
        raise Internal("a search without a rerank stage came to it")
    return rerank


def _judges_pairs(reranker: Reranker) -> TypeGuard[PairReranker]:
    return hasattr(reranker, "score_pairs")
