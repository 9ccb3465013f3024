"""Serves one reranker to rerank requests: loads it, warms it up, and queues the pairs of many callers for it.

The reranking stage of searches does not use this queue; it scores the pairs of its batch directly
(`chamfer.service.search.pair_scoring`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chamfer.core.errors import ChamferError, Unavailable, as_chamfer_error
from chamfer.core.protocols import PairReranker, Reranker
from chamfer.core.types import F32, Document, Query
from chamfer.service.runtime.batching import CHARACTERS_PER_TOKEN, Batcher, BatchingConfig
from chamfer.service.runtime.telemetry import RerankerTelemetry
from chamfer.service.search.pair_scoring import score_each

IMAGE_TOKENS = 1024  # the estimated cost of an image
LONGEST_RETRY_SECONDS = 60.0
WARM_UP = (Query("warm-up", "which document answers this question?"), Document("warm-up", "this one does"))
LoadReranker = Callable[[], Reranker]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A queued item: one pair, or a whole list for a reranker that scores lists."""

    query: Query
    documents: Sequence[Document]


class ServedReranker:
    """A named reranker with its queue. Use it from one event loop, after `start`."""

    def __init__(
        self, name: str, load: LoadReranker, batching: BatchingConfig, telemetry: RerankerTelemetry, *, warm: bool
    ) -> None:
        self.name = name
        self._load = load
        self._warm = warm
        self._telemetry = telemetry
        self._reranker: Reranker | None = None
        self._pair_reranker: PairReranker | None = None  # the same reranker, if it scores pairs
        self._loading: asyncio.Task[None] | None = None
        self._failure: ChamferError | None = None
        self._batcher: Batcher[_Unit, F32] = Batcher(
            self._run, batching, tokens=_estimated_tokens, observer=telemetry, what="pairs to rerank"
        )
        telemetry.watch_queue(lambda: self._batcher.waiting)

    async def start(self) -> None:
        """Starts the queue and, in the background, loading."""
        self._batcher.start()
        self._loading = asyncio.create_task(self._load_with_retries(), name=f"load-{self.name}")

    async def close(self) -> None:
        """Stops loading and completes the queued pairs."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._batcher.close()

    @property
    def reranker(self) -> Reranker:
        """The loaded reranker; raises Unavailable until it is loaded."""
        if self._reranker is None:
            reason = f"loading failed ({self._failure.code}) and is retried" if self._failure else "it is loading"
            raise Unavailable(f"reranker {self.name!r} is not ready: {reason}")
        return self._reranker

    def submit(self, query: Query, documents: Sequence[Document]) -> list[asyncio.Future[F32]]:
        """Futures whose scores, concatenated, are those of the documents. Cancel them when the client disconnects.

        Raises Overloaded or Unavailable.
        """
        _ = self.reranker
        if self._pair_reranker is None:
            return self._batcher.submit([_Unit(query, documents)])
        return self._batcher.submit([_Unit(query, [document]) for document in documents], ranked=True)

    def _run(self, units: Sequence[_Unit]) -> list[F32 | ChamferError]:
        """One batch, in a worker thread."""
        if self._pair_reranker is None:
            return [self._score_list(self.reranker, unit) for unit in units]
        outcomes = score_each(
            self._pair_reranker, [(unit.query, document) for unit in units for document in unit.documents]
        )
        for outcome in outcomes:
            self._telemetry.outcome(outcome.code if isinstance(outcome, ChamferError) else "ok")
        return [
            outcome if isinstance(outcome, ChamferError) else np.array([outcome], dtype=np.float32)
            for outcome in outcomes
        ]

    def _score_list(self, reranker: Reranker, unit: _Unit) -> F32 | ChamferError:
        try:
            scores = reranker.score(unit.query, unit.documents)
        except Exception as error:
            return as_chamfer_error(error, f"reranker {self.name}")
        self._telemetry.outcome("ok", len(scores))
        return scores

    async def _load_with_retries(self) -> None:
        failures = 0
        while self._reranker is None:
            try:
                reranker = await asyncio.to_thread(self._open)
                self._pair_reranker = reranker if isinstance(reranker, PairReranker) else None
                self._reranker = reranker
            except Exception as error:
                self._failure = as_chamfer_error(error, f"reranker {self.name}")
                self._telemetry.log.error("reranker cannot be loaded", exc_info=error)
                failures += 1
                await asyncio.sleep(min(2.0**failures, LONGEST_RETRY_SECONDS))

    def _open(self) -> Reranker:
        reranker = self._load()
        if self._warm:
            reranker.score(WARM_UP[0], [WARM_UP[1]])
        return reranker


def readiness(rerankers: Mapping[str, ServedReranker]) -> Iterator[dict[str, Any]]:
    """The state of each reranker, as JSON values."""
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
