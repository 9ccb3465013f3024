"""Rerankers behind HTTP servers, with time limits, retries and a budget.

A request is retried if it may succeed later (no connection, timeout, 408, 429, 5xx), after exponential backoff with
full jitter or after the server's Retry-After. All attempts of one call to `score` share `budget_seconds`; a retry that
would exceed them fails at once with the reason of the last attempt.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import ChamferError, DeadlineExceeded, InvalidInput, NotFound, Overloaded, Unavailable
from chamfer.core.protocols import Pair
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.pair_scores import refuse_images, scores_of
from chamfer.models.rerankers.remote_protocols import PROTOCOLS, ProtocolName

RETRIED = {408, 425, 429, 500, 502, 503, 504}
MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """One reranking server.

    url                  root of the server; the protocol adds the path
    timeout_seconds      limit of one attempt
    budget_seconds       limit of all attempts and waits of one call
    retries              attempts after the first
    backoff_seconds      longest wait before the first retry; doubles with every retry
    concurrency          requests in flight at the same time
    max_documents        documents in one request
    requests_per_minute  limit of attempts; 0: none
    """

    url: str
    protocol: ProtocolName
    model: str = ""
    api_key: str = field(default="", repr=False)
    timeout_seconds: float = 10.0
    budget_seconds: float = 30.0
    retries: int = 3
    backoff_seconds: float = 0.5
    concurrency: int = 4
    max_documents: int = 32
    requests_per_minute: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InvalidInput(f"remote protocol {self.protocol!r}, expected one of {', '.join(PROTOCOLS)}")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInput(f"the url of a remote reranker is {self.url!r}, expected http:// or https://")
        for name in ("timeout_seconds", "budget_seconds", "concurrency", "max_documents"):
            if getattr(self, name) <= 0:
                raise InvalidInput(f"{name} of a remote reranker is {getattr(self, name)}, expected above 0")


class RemoteReranker:
    """A reranker behind a server. Thread-safe; `close` ends its connections."""

    def __init__(
        self,
        name: str,
        config: RemoteConfig,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._protocol = PROTOCOLS[config.protocol]
        self.name = name
        self.reads_images = self._protocol.images
        self.score_kind = self._protocol.kind
        self.fingerprint = digest_of("remote", config.protocol, config.url, config.model)
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._random = random.Random()
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        self._client = httpx.Client(
            base_url=config.url, headers=headers, timeout=config.timeout_seconds, transport=transport
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix=f"remote-{name}")

    def close(self) -> None:
        """Closes connections and stops threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker. Raises Overloaded, Unavailable or DeadlineExceeded when it gives up."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Pairs with the same query share requests."""
        if not self.reads_images:
            refuse_images(self.name, pairs)
        rows_of: dict[int, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows_of.setdefault(id(query), []).append(row)
        size = 1 if self._protocol.single else self._config.max_documents
        chunks = [rows[start : start + size] for rows in rows_of.values() for start in range(0, len(rows), size)]
        deadline = self._clock() + self._config.budget_seconds
        requests = [self._pool.submit(self._request, [pairs[row] for row in chunk], deadline) for chunk in chunks]
        scores = np.zeros(len(pairs), dtype=np.float32)
        try:
            for chunk, future in zip(chunks, requests, strict=True):
                scores[chunk] = future.result()
        finally:
            for future in requests:  # after a failure, requests that have not started are dropped
                future.cancel()
        return scores

    def _request(self, pairs: Sequence[Pair], deadline: float) -> F32:
        documents = [document for _, document in pairs]
        body = self._protocol.request(self._config.model, pairs[0][0], documents)
        response = self._response(body, deadline)
        try:
            return self._protocol.scores(response, len(documents))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unavailable(
                f"reranker {self.name} sent a response that is not of protocol {self._config.protocol} ({error!r})"
            ) from error

    def _response(self, body: Any, deadline: float) -> Any:
        """The JSON of the first successful attempt."""
        for attempt in range(self._config.retries + 1):
            failure, result = self._attempt(body, deadline)
            if failure is None:
                return result
            if attempt == self._config.retries or isinstance(failure, InvalidInput | NotFound):
                raise failure
            pause = result if result is not None else self._random.uniform(0, self._config.backoff_seconds * 2**attempt)
            if self._clock() + pause >= deadline:
                raise failure
            self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, body: Any, deadline: float) -> tuple[ChamferError | None, Any]:
        """(None, the JSON of the response), or (what went wrong, the seconds that the server asks to wait or None)."""
        self._count()
        remaining = deadline - self._clock()
        if remaining <= 0:
            raise DeadlineExceeded(f"reranker {self.name} did not answer within {self._config.budget_seconds} s")
        limit = min(self._config.timeout_seconds, remaining)
        try:
            with self._client.stream("POST", self._protocol.path, json=body, timeout=limit) as response:
                content = self._read(response, self._clock() + limit)
        except httpx.HTTPError as error:
            return Unavailable(f"reranker {self.name} cannot be reached ({type(error).__name__}: {error})"), None
        if response.status_code == 200:
            try:
                return None, httpx.Response(200, content=content).json()
            except ValueError:
                raise Unavailable(f"reranker {self.name} sent a response that is not JSON") from None
        return self._failure(response, content)

    def _failure(self, response: httpx.Response, content: bytes) -> tuple[ChamferError, float | None]:
        status, text = response.status_code, content[:300].decode("utf-8", "replace")
        what = f"reranker {self.name} answered with status {status}: {text}"
        wait = retry_after(response.headers.get("retry-after", ""), time.time())
        if status == 429:
            return Overloaded(what, wait or 1.0), wait
        if status in RETRIED:
            return Unavailable(what), wait
        if status in (401, 403):
            raise Unavailable(f"{what} (the server rejects models.remotes.NAME.api_key)")
        if status == 404:
            return NotFound(what), None
        return InvalidInput(what), None

    def _read(self, response: httpx.Response, until: float) -> bytes:
        content = b""
        for part in response.iter_bytes():
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise Unavailable(f"reranker {self.name} answered with more than {MAX_ANSWER_BYTES:,} bytes")
            if self._clock() > until:
                raise httpx.ReadTimeout("the response did not end in time")
        return content

    def _count(self) -> None:
        """Counts an attempt against requests_per_minute; Overloaded if they are used up."""
        if not self._config.requests_per_minute:
            return
        with self._lock:
            now = self._clock()
            while self._recent and self._recent[0] <= now - 60:
                self._recent.popleft()
            if len(self._recent) >= self._config.requests_per_minute:
                raise Overloaded(
                    f"reranker {self.name} has used up its {self._config.requests_per_minute} requests of this minute "
                    "(requests_per_minute)",
                    self._recent[0] + 60 - now,
                )
            self._recent.append(now)


def retry_after(header: str, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3: seconds or a date); None without a valid one."""
    text = header.strip()
    if text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError):
        return None
