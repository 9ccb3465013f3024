"""Pairs of many callers through one reranker: faults kept apart, the most promising first, cut by deadlines.

Searches come here from their batch (`rank_in_time`), requests for reranking alone through a queue of their own
(`ServedReranker`); both end in `judge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError, DeadlineExceeded, Internal, NotFound, Overloaded, Unavailable
from chamfer.core.protocols import Pair, PairReranker, Reranker
from chamfer.core.types import F32, Document, Query
from chamfer.service.runtime.batching import CHARACTERS_PER_TOKEN, Batcher, BatchingConfig
from chamfer.service.runtime.telemetry import RerankerTelemetry

# Not a matter of one input: asking the same again, in halves, would only ask a server in trouble more often.
SHARED_FAULTS = (Unavailable, Overloaded, DeadlineExceeded, NotFound)
ROUND_PAIRS = 16
IMAGE_TOKENS = 1024
LONGEST_RETRY_SECONDS = 60.0
WARM_UP = (Query("warm-up", "which document answers this question?"), Document("warm-up", "this one does"))
Outcome = float | ChamferError
LoadReranker = Callable[[], Reranker]


def judge(reranker: PairReranker, pairs: Sequence[Pair]) -> list[Outcome]:
    """A score or an error for each pair. A batch that fails is halved until those at fault stand alone."""
    try:
        scores = reranker.score_pairs(pairs)
        if scores.shape != (len(pairs),):
            raise Internal(f"reranker {reranker.name} gave {scores.shape} scores for {len(pairs)} pairs")
    except SHARED_FAULTS as error:
        return [error] * len(pairs)
    except Exception as error:
        if len(pairs) > 1:
            middle = len(pairs) // 2
            return judge(reranker, pairs[:middle]) + judge(reranker, pairs[middle:])
        return [_as_chamfer_error(reranker.name, error)]
    return [
        score if np.isfinite(score) else Internal(f"reranker {reranker.name} gave a score that is not finite")
        for score in scores.tolist()
    ]


@dataclass(slots=True)
class Ask:
    """One query with its documents, the most promising first, and what has become of them so far.

    `scores` belongs to the first documents; fewer than there are documents once the deadline has cut the rest.
    """

    query: Query
    documents: Sequence[Document]
    deadline: float | None = None
    scores: list[float] = field(default_factory=list)
    error: ChamferError | None = None

    @property
    def open(self) -> bool:
        return self.error is None and len(self.scores) < len(self.documents)


class Pace:
    """How long a pair takes, learnt from those that were judged."""

    def __init__(self) -> None:
        self.seconds_per_pair = 0.0

    def observe(self, seconds: float, pairs: int) -> None:
        own = seconds / pairs
        self.seconds_per_pair += (0.2 if self.seconds_per_pair else 1.0) * (own - self.seconds_per_pair)


def rank_in_time(reranker: PairReranker, asks: Sequence[Ask], pace: Pace, clock: Callable[[], float]) -> None:
    """Judges the documents of all asks, in rounds that take the next of each; stops an ask before its deadline.

    Without deadlines there is one round, so that the model sees all pairs at once.
    """
    every = max((len(ask.documents) for ask in asks), default=0)
    while live := [ask for ask in asks if ask.open and _fits(ask, asks, pace, clock())]:
        hurried = any(ask.deadline is not None for ask in live)
        each = max(1, ROUND_PAIRS // len(live)) if hurried else every
        shares = [ask.documents[len(ask.scores) : len(ask.scores) + each] for ask in live]
        pairs = [(ask.query, document) for ask, share in zip(live, shares, strict=True) for document in share]
        started = clock()
        outcomes = iter(judge(reranker, pairs))
        pace.observe(clock() - started, len(pairs))
        for ask, share in zip(live, shares, strict=True):
            _take(ask, [next(outcomes) for _ in share])


def _fits(ask: Ask, asks: Sequence[Ask], pace: Pace, now: float) -> bool:
    round_pairs = min(ROUND_PAIRS, sum(len(other.documents) - len(other.scores) for other in asks if other.open))
    return ask.deadline is None or now + pace.seconds_per_pair * round_pairs < ask.deadline


def _take(ask: Ask, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ChamferError):
            ask.error = outcome
            return
        ask.scores.append(outcome)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What waits: one pair, or a whole list for a reranker that judges lists."""

    query: Query
    documents: Sequence[Document]


class ServedReranker:
    """A reranker by name with its queue. To be used from one event loop, after `start`."""

    def __init__(
        self, name: str, load: LoadReranker, batching: BatchingConfig, telemetry: RerankerTelemetry, *, warm: bool
    ) -> None:
        self.name = name
        self._load = load
        self._warm = warm
        self._telemetry = telemetry
        self._reranker: Reranker | None = None
        self._loading: asyncio.Task[None] | None = None
        self._failure: ChamferError | None = None
        self._batcher: Batcher[_Unit, F32] = Batcher(
            self._run, batching, tokens=_estimated_tokens, observer=telemetry, what="pairs to rerank"
        )
        telemetry.watch_queue(lambda: self._batcher.waiting)

    async def start(self) -> None:
        """Starts the queue, and loading in the background."""
        self._batcher.start()
        self._loading = asyncio.create_task(self._keep_trying(), name=f"load-{self.name}")

    async def close(self) -> None:
        """Ends loading and answers what waits."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._batcher.close()

    @property
    def reranker(self) -> Reranker:
        """The loaded reranker; Unavailable before."""
        if self._reranker is None:
            reason = (
                f"its loading failed ({self._failure.code}) and is tried again" if self._failure else "it is loading"
            )
            raise Unavailable(f"reranker {self.name!r} is not ready: {reason}")
        return self._reranker

    def submit(self, query: Query, documents: Sequence[Document]) -> list[asyncio.Future[F32]]:
        """Futures whose scores, one after another, are those of the documents. Cancel them when the caller leaves.

        Raises Overloaded or Unavailable.
        """
        if not hasattr(self.reranker, "score_pairs"):
            return self._batcher.submit([_Unit(query, documents)])
        return self._batcher.submit([_Unit(query, [document]) for document in documents], ranked=True)

    def _run(self, units: Sequence[_Unit]) -> list[F32 | ChamferError]:
        """One batch, in a worker thread."""
        reranker: Any = self.reranker
        if not hasattr(reranker, "score_pairs"):
            return [self._judge_list(reranker, unit) for unit in units]
        outcomes = judge(reranker, [(unit.query, document) for unit in units for document in unit.documents])
        for outcome in outcomes:
            self._telemetry.outcome(outcome.code if isinstance(outcome, ChamferError) else "ok")
        return [o if isinstance(o, ChamferError) else np.array([o], dtype=np.float32) for o in outcomes]

    def _judge_list(self, reranker: Reranker, unit: _Unit) -> F32 | ChamferError:
        try:
            scores = reranker.score(unit.query, unit.documents)
        except Exception as error:
            return _as_chamfer_error(self.name, error)
        self._telemetry.outcome("ok", len(scores))
        return scores

    async def _keep_trying(self) -> None:
        failures = 0
        while self._reranker is None:
            try:
                self._reranker = await asyncio.to_thread(self._open)
            except Exception as error:
                self._failure = _as_chamfer_error(self.name, error)
                self._telemetry.log.error("reranker cannot be loaded", exc_info=error)
                failures += 1
                await asyncio.sleep(min(2.0**failures, LONGEST_RETRY_SECONDS))

    def _open(self) -> Reranker:
        reranker = self._load()
        if self._warm:
            reranker.score(WARM_UP[0], [WARM_UP[1]])
        return reranker


def readiness(rerankers: Mapping[str, ServedReranker]) -> Iterator[dict[str, Any]]:
    """The state of each reranker, ready for JSON."""
    for name, served in rerankers.items():
        try:
            _ = served.reranker
        except Unavailable as reason:
            yield {"name": name, "ready": False, "reason": reason.detail}
        else:
            yield {"name": name, "ready": True}


def _estimated_tokens(unit: _Unit) -> int:
    documents = unit.documents
    characters = sum(len(document.content) for document in documents) + len(unit.query.text) * len(documents)
    images = sum(document.image is not None for document in documents)
    images += len(documents) * (unit.query.image is not None)
    return 1 + characters // CHARACTERS_PER_TOKEN + images * IMAGE_TOKENS


def _as_chamfer_error(name: str, error: Exception) -> ChamferError:
    if isinstance(error, ChamferError):
        return error
    failure = Internal(f"reranker {name} failed")
    failure.__cause__ = error
    return failure
