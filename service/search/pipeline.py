"""The search pipeline: encode, retrieve, fuse, expand by feedback, rescore, retrieve by a cross-encoder, rerank.

Synchronous, and works on batches. One call encodes all queries of a batch; every later stage runs once for each group
of requests with the same parameters. A request fails alone, and its result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError, Internal
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import I64, Candidates, Document, Hit, Query, VectorKind, Vectors
from chamfer.service.search.channels import CollectionView, SearchChannel, opened_channels
from chamfer.service.search.cross_encoder_stages import CrossEncoderStages
from chamfer.service.search.deadlines import Clock, exceeded, fits
from chamfer.service.search.explain import explanation, pool_features
from chamfer.service.search.feedback_stage import expand
from chamfer.service.search.fusion import blend, scored_head_first
from chamfer.service.search.fusion_stage import fuse_feedback_runs, fuse_runs
from chamfer.service.search.in_flight import InFlightSearch, StageScores
from chamfer.service.search.plans import Plan, Rescore
from chamfer.service.search.presets import Capabilities, named_plans, resolve
from chamfer.service.search.request import RetrievedPool, SearchRequest, SearchResult
from chamfer.service.search.stage_runner import StageRunner, grouped

WARM_UP_QUERY = "which document answers this question?"


class Pipeline:
    """An opened collection with its encoder and rerankers, ready to search. `run` may be called from many threads.

    Channels whose vectors the encoder cannot produce are not searched and not offered to plans.
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
        self._channels = opened_channels(collection)
        self._cross_encoders = CrossEncoderStages(collection, self._channels, self.rerankers, self._stages)
        self.capabilities = _capabilities(
            self._channels, encoder, self.rerankers, tuple(self._cross_encoders.cur_models)
        )
        self.plans = named_plans(self.capabilities, plans or {})

    @property
    def snapshot(self) -> str:
        """The name of the snapshot that is searched."""
        return self.collection.snapshot

    def close(self) -> None:
        """Closes the collection; encoder and rerankers belong to the caller."""
        self._channels.clear()  # their arrays are mapped files
        self.collection.close()

    def warm_up(self) -> None:
        """Searches by every named plan, so that no caller pays for one-time work; raises what a search raises."""
        for name in self.plans:
            # Twice: the second run is also the first realistic measurement of how long the stages take.
            for _ in range(2):
                [result] = self.run([SearchRequest(query=WARM_UP_QUERY, plan=name)])
                if isinstance(result, ChamferError):
                    raise result

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchResult | ChamferError]:
        """One result or error for each request, in order; the failure of one request affects no other."""
        results: list[SearchResult | ChamferError | None] = [None] * len(requests)
        admitted: dict[int, InFlightSearch] = {}
        for position, request in enumerate(requests):
            try:
                admitted[position] = self._admit(request)
            except ChamferError as error:
                results[position] = error
        for stage in (
            self._filter,
            self._encode,
            self._retrieve,
            self._fuse,
            self._feed_back,
            self._rescore,
            self._cross_encoders.retrieve,
            self._cross_encoders.rerank,
            self._finish,
        ):
            stage([search for search in admitted.values() if search.result is None])
        for position, search in admitted.items():
            results[position] = search.result
        return [result or Internal("the search ended without a result") for result in results]

    def _admit(self, request: SearchRequest) -> InFlightSearch:
        plan = resolve(request.plan, self.capabilities, self.plans)
        if not fits(request.deadline, self._stages.clock()):
            raise exceeded("the search started")
        if request.image is not None:
            self._cross_encoders.expect_images(plan)
        return InFlightSearch(request, plan, Query("query", request.query, image=request.image))

    def _filter(self, searches: list[InFlightSearch]) -> None:
        filtered = [s for s in searches if s.request.filter is not None]
        for group in grouped(filtered, lambda s: s.filter_key):
            self._stages.attempt("filter", group, self._compute_allowed)

    def _compute_allowed(self, group: list[InFlightSearch]) -> None:
        allowed = self.collection.allowed(group[0].request.filter)
        for search in group:
            search.allowed = allowed

    def _encode(self, searches: list[InFlightSearch]) -> None:
        kinds = {id(s): self._kinds(s.plan.plan) for s in searches}
        union = sorted(set().union(*kinds.values()))
        self._stages.attempt("encode", [s for s in searches if kinds[id(s)]], partial(self._encode_group, union))

    def _encode_group(self, kinds: list[VectorKind], group: list[InFlightSearch]) -> None:
        if self.encoder is None:
            raise Internal("a plan that needs vectors was admitted without an encoder")
        # Encoders read text; an image was admitted for the cross-encoders behind them.
        encoding = self.encoder.encode_queries([Query("query", s.query.text) for s in group], kinds)
        for row, search in enumerate(group):
            search.encoding, search.encoding_row = encoding, row

    def _kinds(self, plan: Plan) -> set[VectorKind]:
        names = [*plan.active, *([plan.rescore.channel] if plan.rescore else [])]
        kinds = (self._channels[name].kind for name in names)
        return {kind for kind in kinds if kind is not None}

    def _retrieve(self, searches: list[InFlightSearch]) -> None:
        for name in dict.fromkeys(name for s in searches for name in s.plan.plan.active):
            pending = [s for s in searches if s.result is None and name in s.plan.plan.active]
            in_time = self._stages.in_time(f"retrieve:{name}", pending, needed=lambda s: not s.runs)
            for group in grouped(in_time, partial(_retrieval_key, name)):
                self._stages.attempt(f"retrieve:{name}", group, partial(self._search_channel, name))

    def _search_channel(self, name: str, group: list[InFlightSearch]) -> None:
        channel = self._channels[name]
        depth = _retrieval_depth(name, group[0])
        candidates = channel.retriever.search(_query_vectors(channel, group), depth, group[0].allowed)
        for row, search in enumerate(group):
            search.runs[name] = _one_query(candidates, row)

    def _fuse(self, searches: list[InFlightSearch]) -> None:
        for search in searches:
            if len(search.runs) > 1:
                self._stages.attempt("fuse", [search], fuse_runs)
            elif not search.plan.plan.active:
                continue  # a cross-encoder retrieves alone
            elif search.runs:  # a single run keeps the channel's own scores
                [search.ranked] = search.runs.values()
            else:
                search.result = exceeded("any channel was searched")

    def _feed_back(self, searches: list[InFlightSearch]) -> None:
        plans = {id(s): s.plan.plan.feedback for s in searches if s.plan.plan.feedback}
        for name in dict.fromkeys(name for plan in plans.values() for name in plan.channels):
            pending = [s for s in searches if s.result is None and id(s) in plans and name in plans[id(s)].channels]
            in_time = self._stages.in_time(f"feedback:{name}", pending, needed=lambda _: False)
            for group in grouped(in_time, partial(_retrieval_key, name)):
                self._stages.attempt(f"feedback:{name}", group, partial(self._search_again, name))
        for search in searches:
            if search.result is None and search.feedback_runs:
                self._stages.attempt("fuse_again", [search], fuse_feedback_runs)

    def _search_again(self, name: str, group: list[InFlightSearch]) -> None:
        channel = self._channels[name]
        queries = channel.required_expandable().stored_form(_query_vectors(channel, group))
        for row, search in enumerate(group):
            search.expansions[name] = expand(search, channel, queries.take([row]))
        changed = [s for s in group if _is_expanded(name, s) and name in s.plan.plan.active]
        if changed:
            depth = _retrieval_depth(name, group[0])
            candidates = channel.retriever.search(_expanded_queries(name, changed), depth, group[0].allowed)
            for row, search in enumerate(changed):
                search.feedback_runs[name] = _one_query(candidates, row)

    def _rescore(self, searches: list[InFlightSearch]) -> None:
        for same_plan in grouped(searches, lambda s: s.plan.plan.rescore):
            rescore = same_plan[0].plan.plan.rescore
            if rescore is None:
                continue
            stage = f"rescore:{rescore.channel}"
            pending = [s for s in same_plan if s.current.depth]
            in_time = self._stages.in_time(stage, pending, needed=lambda _: False)
            for group in grouped(in_time, partial(_rescoring_key, rescore.channel)):
                self._stages.attempt(stage, group, partial(self._rescore_group, rescore))

    def _rescore_group(self, plan: Rescore, group: list[InFlightSearch]) -> None:
        heads = [search.current.of(0)[0][: plan.limit] for search in group]
        rows = np.full((len(group), max(map(len, heads))), -1, dtype=np.int64)
        for padded, head in zip(rows, heads, strict=True):
            padded[: len(head)] = head
        channel = self._channels[plan.channel]
        expanded = _is_expanded(plan.channel, group[0])
        queries = _expanded_queries(plan.channel, group) if expanded else _query_vectors(channel, group)
        padded_scores = channel.required_rescorer().score(queries, rows)
        for search, head, head_scores in zip(group, heads, padded_scores, strict=True):
            scores, earlier = head_scores[: len(head)], search.current
            ranked = scored_head_first(earlier, plan.limit, scores)
            search.add_scores(StageScores("rescore", plan.channel, head, scores, ranked))
            if plan.interpolate is not None:
                blended = blend(plan.interpolate, scores, earlier.scores[0, : len(head)])
                ranked = scored_head_first(earlier, plan.limit, blended)
                search.add_scores(StageScores("blend", plan.channel, head, blended, ranked))

    def _finish(self, searches: list[InFlightSearch]) -> None:
        self._stages.attempt("documents", searches, self._make_results)

    def _make_results(self, group: list[InFlightSearch]) -> None:
        hit_rows = [search.current.of(0)[0][: search.request.k] for search in group]
        documents = self.collection.documents(np.concatenate(hit_rows))
        feedback_ids = self._feedback_ids([search for search in group if search.request.explain])
        start = 0
        for search, rows in zip(group, hit_rows, strict=True):
            search_documents = documents[start : start + len(rows)]
            start += len(rows)
            search.result = SearchResult(
                hits=_hits(search, rows, search_documents, feedback_ids),
                timings_ms=search.timings_ms,
                snapshot=self.snapshot,
                degraded=tuple(search.degraded),
                truncated_query=search.encoding is not None and bool(search.encoding.truncated[search.encoding_row]),
                plan=search.plan,
                pool=self._pool(search),
            )

    def _feedback_ids(self, explained: list[InFlightSearch]) -> dict[int, str]:
        """The doc_ids of the feedback documents of explained searches, by row."""
        rows = [e.rows for search in explained for e in search.expansions.values()]
        distinct = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows]))
        documents = self.collection.documents(distinct) if len(distinct) else []
        return {row: document.doc_id for row, document in zip(distinct.tolist(), documents, strict=True)}

    def _pool(self, search: InFlightSearch) -> RetrievedPool | None:
        if not search.request.pool:
            return None
        rows = search.current.of(0)[0][: search.request.pool]
        return RetrievedPool(tuple(self.collection.doc_ids(rows)), partial(pool_features, search, rows))


def _capabilities(
    channels: Mapping[str, SearchChannel],
    encoder: Encoder | None,
    rerankers: Mapping[str, Reranker],
    cur: tuple[str, ...],
) -> Capabilities:
    available_kinds = {None, *(encoder.spec.dims if encoder else ())}
    searchable = {name: channel for name, channel in channels.items() if channel.kind in available_kinds}
    return Capabilities(
        channels=tuple(searchable),
        rescorers=tuple(name for name, channel in searchable.items() if channel.rescorer is not None),
        rerankers=tuple(rerankers),
        cur=cur,
        expandable={
            name: channel.expandable.stored_kind
            for name, channel in searchable.items()
            if channel.expandable is not None
        },
    )


def _retrieval_depth(name: str, search: InFlightSearch) -> int:
    channel = search.plan.plan.channels.get(name)  # None for a channel that only rescores
    return max(channel.depth if channel else 1, search.request.k)


def _retrieval_key(name: str, search: InFlightSearch) -> tuple[int, str, int]:
    return _retrieval_depth(name, search), search.filter_key, id(search.encoding)


def _one_query(candidates: Candidates, row: int) -> Candidates:
    return Candidates(candidates.rows[row : row + 1], candidates.scores[row : row + 1])


def _query_vectors(channel: SearchChannel, group: list[InFlightSearch]) -> Vectors:
    """The queries of the group in the form that the channel reads; the group shares one encoding."""
    if channel.text_encoder is not None:
        return channel.text_encoder.encode_queries([search.query.text for search in group])
    encoding = group[0].encoding
    if encoding is None or channel.kind is None:
        raise Internal(f"channel {channel.name} was searched before its queries were encoded")
    return encoding.vectors(channel.kind).take([search.encoding_row for search in group])


def _is_expanded(name: str, search: InFlightSearch) -> bool:
    return name in search.expansions and search.expansions[name].vectors is not None


def _rescoring_key(name: str, search: InFlightSearch) -> tuple[int, bool]:
    return id(search.encoding), _is_expanded(name, search)


def _expanded_queries(name: str, group: list[InFlightSearch]) -> Vectors:
    """The group's queries after feedback, in the stored form of the channel."""
    parts: list[Any] = [search.expansions[name].vectors for search in group]  # all of one kind
    vectors: Vectors = type(parts[0]).concatenate(parts)
    return vectors


def _hits(
    search: InFlightSearch, rows: I64, documents: Sequence[Document], feedback_ids: Mapping[int, str]
) -> tuple[Hit, ...]:
    scores = search.current.scores[0].tolist()
    explain = search.request.explain
    return tuple(
        Hit(
            document.doc_id,
            position + 1,
            scores[position],
            document,
            explanation(search, row, feedback_ids) if explain else None,
        )
        for position, (row, document) in enumerate(zip(rows.tolist(), documents, strict=True))
    )
