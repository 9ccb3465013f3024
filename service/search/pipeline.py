"""Search requests to search results: encode, retrieve, fuse, feed back, rescore, ask cross-encoders.

Synchronous and batch-shaped. All queries of a batch are encoded by one call; every later stage runs once for each
group of requests that ask the same of it. A request fails alone, and its result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError, DeadlineExceeded, Internal
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import I64, Candidates, Document, Hit, Query, VectorKind, Vectors
from chamfer.service.search.cross_encoder_stages import CrossEncoding
from chamfer.service.search.feedback_stage import expand
from chamfer.service.search.fusion import Fused, blend, distribution_based, interpolate, judged_first, reciprocal_rank
from chamfer.service.search.plans import (
    DistributionBased,
    Features,
    Plan,
    ReciprocalRank,
    Rescore,
    named_plans,
    resolve,
)
from chamfer.service.search.request import ChannelView, CollectionView, RetrievedPool, SearchRequest, SearchResult
from chamfer.service.search.stages import (
    Clock,
    Judgement,
    Search,
    StageRunner,
    explanation,
    grouped,
    pool_features,
    second_runs,
)

__all__ = ["Pipeline", "SearchRequest", "SearchResult"]

WARM_UP_QUERY = "which document answers this question?"


class Pipeline:
    """One opened collection with its encoder and rerankers, ready to answer. `run` may be called from many threads.

    A channel whose vectors the encoder cannot give is not searched and not offered to plans.
    """

    def __init__(
        self,
        collection: CollectionView,
        encoder: Encoder | None,
        rerankers: Mapping[str, Reranker] | None = None,
        *,
        plans: Mapping[str, Plan] | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.collection = collection
        self.encoder = encoder
        self.rerankers = dict(rerankers or {})
        self._stages = StageRunner(clock)
        self._cross = CrossEncoding(collection, self.rerankers, self._stages)
        self.features = _features(collection, encoder, self.rerankers, tuple(self._cross.cur_models))
        self.plans = named_plans(self.features, plans or {})

    @property
    def snapshot(self) -> str:
        """The name of the snapshot that answers."""
        return self.collection.snapshot

    def close(self) -> None:
        """Closes the collection; encoder and rerankers belong to the caller."""
        self.collection.close()

    def warm_up(self) -> None:
        """Searches by every named plan, so that no caller pays for what happens once; raises what a search raises."""
        for name in self.plans:
            # Twice: the second run is also the first honest estimate of how long the stages take.
            for _ in range(2):
                [answer] = self.run([SearchRequest(query=WARM_UP_QUERY, plan=name)])
                if isinstance(answer, ChamferError):
                    raise answer

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchResult | ChamferError]:
        """One result or error for each request, in order; a fault of one request is its own error."""
        answers: list[SearchResult | ChamferError | None] = [None] * len(requests)
        admitted: dict[int, Search] = {}
        for position, request in enumerate(requests):
            try:
                admitted[position] = self._admit(request)
            except ChamferError as error:
                answers[position] = error
        for stage in (
            self._filter,
            self._encode,
            self._retrieve,
            self._fuse,
            self._feed_back,
            self._rescore,
            self._cross.retrieve,
            self._cross.rerank,
            self._finish,
        ):
            stage([search for search in admitted.values() if search.result is None])
        for position, search in admitted.items():
            answers[position] = search.result
        return [answer or Internal("the search ended without a result") for answer in answers]

    def _admit(self, request: SearchRequest) -> Search:
        plan = resolve(request.plan, self.features, self.plans)
        if request.deadline is not None and self._stages.clock() >= request.deadline:
            raise DeadlineExceeded("the allowed time was over before the search began; allow more by timeout_ms")
        if request.image is not None:
            self._cross.expect_images(plan)
        return Search(request, plan, Query("query", request.query, image=request.image))

    def _filter(self, searches: list[Search]) -> None:
        filtered = [s for s in searches if s.request.filter is not None]
        for group in grouped(filtered, lambda s: s.filter_key):
            self._stages.attempt("filter", group, self._compute_allowed)

    def _compute_allowed(self, group: list[Search]) -> None:
        allowed = self.collection.allowed(group[0].request.filter)
        for search in group:
            search.allowed = allowed

    def _encode(self, searches: list[Search]) -> None:
        kinds = {id(s): self._kinds(s.plan.plan) for s in searches}
        union = sorted(set().union(*kinds.values()))
        self._stages.attempt("encode", [s for s in searches if kinds[id(s)]], partial(self._encode_group, union))

    def _encode_group(self, kinds: list[VectorKind], group: list[Search]) -> None:
        if self.encoder is None:
            raise Internal("a plan that needs vectors was admitted without an encoder")
        # Encoders read text; an image was let in for the cross-encoders behind them.
        encoding = self.encoder.encode_queries([Query("query", s.query.text) for s in group], kinds)
        for row, search in enumerate(group):
            search.encoding, search.encoding_row = encoding, row

    def _kinds(self, plan: Plan) -> set[VectorKind]:
        names = [*plan.active, *([plan.rescore.channel] if plan.rescore else [])]
        kinds = (self.collection.channels[name].family.kind for name in names)
        return {kind for kind in kinds if kind is not None}

    def _retrieve(self, searches: list[Search]) -> None:
        for name in dict.fromkeys(name for s in searches for name in s.plan.plan.active):
            asking = [s for s in searches if s.result is None and name in s.plan.plan.active]
            in_time = self._stages.in_time(f"retrieve:{name}", asking, needed=lambda s: not s.runs)
            for group in grouped(in_time, partial(_retrieval_key, name)):
                self._stages.attempt(f"retrieve:{name}", group, partial(self._search_channel, name))

    def _search_channel(self, name: str, group: list[Search]) -> None:
        channel = self.collection.channels[name]
        depth = _retrieval_depth(name, group[0])
        found = channel.retriever.search(_query_vectors(channel, group), depth, group[0].allowed)
        for row, search in enumerate(group):
            search.runs[name] = Candidates(found.rows[row : row + 1], found.scores[row : row + 1])

    def _fuse(self, searches: list[Search]) -> None:
        for search in searches:
            if len(search.runs) > 1:
                self._stages.attempt("fuse", [search], _fuse_runs)
            elif not search.plan.plan.active:
                continue  # a cross-encoder retrieves alone
            elif search.runs:  # nothing to fuse: the channel's own scores stand
                [search.ranked] = search.runs.values()
            else:
                search.result = DeadlineExceeded(
                    "the allowed time was over before a channel had answered; allow more by timeout_ms"
                )

    def _feed_back(self, searches: list[Search]) -> None:
        plans = {id(s): s.plan.plan.feedback for s in searches if s.plan.plan.feedback}
        for name in dict.fromkeys(name for plan in plans.values() for name in plan.channels):
            asking = [s for s in searches if s.result is None and id(s) in plans and name in plans[id(s)].channels]
            in_time = self._stages.in_time(f"feedback:{name}", asking, needed=lambda _: False)
            for group in grouped(in_time, partial(_retrieval_key, name)):
                self._stages.attempt(f"feedback:{name}", group, partial(self._search_again, name))
        for search in searches:
            if search.result is None and search.runs_again:
                self._stages.attempt("fuse_again", [search], _fuse_again)

    def _search_again(self, name: str, group: list[Search]) -> None:
        channel = self.collection.channels[name]
        queries = channel.retriever.stored_form(_query_vectors(channel, group))
        for row, search in enumerate(group):
            search.expansions[name] = expand(search, name, channel.retriever, queries.take([row]))
        changed = [s for s in group if s.expansions[name].vectors is not None and name in s.plan.plan.active]
        if changed:
            vectors = _expanded(name, changed)
            found = channel.retriever.search(vectors, _retrieval_depth(name, group[0]), group[0].allowed)
            for row, search in enumerate(changed):
                search.runs_again[name] = Candidates(found.rows[row : row + 1], found.scores[row : row + 1])

    def _rescore(self, searches: list[Search]) -> None:
        for asking in grouped(searches, lambda s: s.plan.plan.rescore):
            rescore = asking[0].plan.plan.rescore
            if rescore is None:
                continue
            stage = f"rescore:{rescore.channel}"
            scorable = [s for s in asking if s.current.depth]
            in_time = self._stages.in_time(stage, scorable, needed=lambda _: False)
            for group in grouped(in_time, partial(_rescoring_key, rescore.channel)):
                self._stages.attempt(stage, group, partial(self._rescore_group, rescore))

    def _rescore_group(self, plan: Rescore, group: list[Search]) -> None:
        heads = [search.current.of(0)[0][: plan.limit] for search in group]
        rows = np.full((len(group), max(map(len, heads))), -1, dtype=np.int64)
        for padded, head in zip(rows, heads, strict=True):
            padded[: len(head)] = head
        channel = self.collection.channels[plan.channel]
        expanded = _is_expanded(plan.channel, group[0])
        queries = _expanded(plan.channel, group) if expanded else _query_vectors(channel, group)
        scores = channel.retriever.score(queries, rows)
        for search, head, own in zip(group, heads, scores, strict=True):
            judged, earlier = own[: len(head)], search.current
            search.judge(Judgement("rescore", plan.channel, head, judged, judged_first(earlier, plan.limit, judged)))
            if plan.interpolate is not None:
                final = blend(plan.interpolate, judged, earlier.scores[0, : len(head)])
                search.judge(Judgement("blend", plan.channel, head, final, judged_first(earlier, plan.limit, final)))

    def _finish(self, searches: list[Search]) -> None:
        self._stages.attempt("documents", searches, self._answer)

    def _answer(self, group: list[Search]) -> None:
        kept = [search.current.of(0)[0][: search.request.k] for search in group]
        documents = self.collection.documents(np.concatenate(kept))
        names = self._feedback_ids([search for search in group if search.request.explain])
        start = 0
        for search, rows in zip(group, kept, strict=True):
            own = documents[start : start + len(rows)]
            start += len(rows)
            search.result = SearchResult(
                hits=_hits(search, rows, own, names),
                timings_ms=search.timings_ms,
                snapshot=self.snapshot,
                degraded=tuple(search.degraded),
                truncated_query=search.encoding is not None and bool(search.encoding.truncated[search.encoding_row]),
                plan=search.plan,
                pool=self._pool(search),
            )

    def _feedback_ids(self, explained: list[Search]) -> dict[int, str]:
        """The doc_ids of the documents that explained searches learnt from, by row."""
        rows = [e.rows for search in explained for e in search.expansions.values()]
        wanted = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows]))
        documents = self.collection.documents(wanted) if len(wanted) else []
        return {row: document.doc_id for row, document in zip(wanted.tolist(), documents, strict=True)}

    def _pool(self, search: Search) -> RetrievedPool | None:
        if not search.request.pool:
            return None
        rows = search.current.of(0)[0][: search.request.pool]
        return RetrievedPool(tuple(self.collection.doc_ids(rows)), partial(pool_features, search, rows))


def _features(
    collection: CollectionView, encoder: Encoder | None, rerankers: Mapping[str, Reranker], cur: tuple[str, ...]
) -> Features:
    given = {None, *(encoder.spec.dims if encoder else ())}
    usable = {name: channel for name, channel in collection.channels.items() if channel.family.kind in given}
    return Features(
        channels=tuple(usable),
        rescorers=tuple(name for name, channel in usable.items() if hasattr(channel.retriever, "score")),
        rerankers=tuple(rerankers),
        cur=cur,
        expandable={
            name: channel.retriever.stored_kind
            for name, channel in usable.items()
            if hasattr(channel.retriever, "stored_kind")
        },
    )


def _retrieval_depth(name: str, search: Search) -> int:
    channel = search.plan.plan.channels.get(name)  # None where it only rescores
    return max(channel.depth if channel else 1, search.request.k)


def _retrieval_key(name: str, search: Search) -> tuple[int, str, int]:
    return _retrieval_depth(name, search), search.filter_key, id(search.encoding)


def _query_vectors(channel: ChannelView, group: list[Search]) -> Vectors:
    """The queries of the group in the form that the channel reads; the group shares one encoding."""
    kind: VectorKind | None = channel.family.kind
    if kind is None:
        vectors: Vectors = channel.retriever.encode_queries([search.query.text for search in group])
        return vectors
    encoding = group[0].encoding
    if encoding is None:
        raise Internal(f"channel {channel.name} was searched before its queries were encoded")
    return encoding.vectors(kind).take([search.encoding_row for search in group])


def _is_expanded(name: str, search: Search) -> bool:
    return name in search.expansions and search.expansions[name].vectors is not None


def _rescoring_key(name: str, search: Search) -> tuple[int, bool]:
    return id(search.encoding), _is_expanded(name, search)


def _expanded(name: str, group: list[Search]) -> Vectors:
    """The group's queries after feedback, in the stored form of the channel."""
    parts: list[Any] = [search.expansions[name].vectors for search in group]
    vectors: Vectors = type(parts[0]).concatenate(parts)
    return vectors


def _fuse_runs(group: list[Search]) -> None:
    for search in group:
        # In the plan's order: the runs came in the order of the whole batch, and sums depend on order in the last bit.
        runs = {name: search.runs[name] for name in search.plan.plan.active if name in search.runs}
        search.fused = _fused(search.plan.plan, runs)
        search.ranked = search.fused.candidates


def _fuse_again(group: list[Search]) -> None:
    for search in group:
        runs = second_runs(search)
        if len(runs) > 1:
            search.fused_again = _fused(search.plan.plan, runs)
            search.ranked = search.fused_again.candidates
        else:
            [search.ranked] = runs.values()


def _fused(plan: Plan, runs: Mapping[str, Candidates]) -> Fused:
    weights = {name: plan.channels[name].weight for name in runs}
    if isinstance(plan.fusion, ReciprocalRank):
        return reciprocal_rank(runs, weights, plan.fusion.k)
    if isinstance(plan.fusion, DistributionBased):
        return distribution_based(runs, weights)
    return interpolate(runs, weights, plan.fusion.normalisation)


def _hits(search: Search, rows: I64, documents: Sequence[Document], names: Mapping[int, str]) -> tuple[Hit, ...]:
    scores = search.current.scores[0].tolist()
    return tuple(
        Hit(document.doc_id, place + 1, scores[place], document, _explained(search, row, names))
        for place, (row, document) in enumerate(zip(rows.tolist(), documents, strict=True))
    )


def _explained(search: Search, row: int, names: Mapping[int, str]) -> dict[str, Any] | None:
    return explanation(search, row, names) if search.request.explain else None
