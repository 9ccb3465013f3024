"""The settings of the HTTP service. Loads neither FastAPI nor any model, so that every command can read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chamfer.core.errors import InvalidInput
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.runtime.selection_log import SelectionLogConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on a search request. Every message about a limit names its setting (`limits.NAME`)."""

    max_body_bytes: int = 1 << 20
    max_k: int = 1000
    max_query_characters: int = 10_000
    max_batch_searches: int = 128
    max_filter_depth: int = 16
    max_filter_parts: int = 1000
    max_timeout_ms: float = 600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """Images in requests.

    hosts        hosts whose URLs are fetched, each HOST or HOST:PORT; if empty, only data URIs are accepted
    max_bytes    size limit of one image
    max_images   largest number of images in one request
    seconds      time limit for fetching one image
    """

    hosts: tuple[str, ...] = ()
    max_bytes: int = 10 << 20
    max_images: int = 64
    seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatchingConfig(BatchingConfig):
    """The same limits for the queue of one reranker, counted in pairs."""

    max_waiting: int = 8192
    max_batch: int = 256
    token_budget: int = 8192
    inline_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankingConfig:
    """Rerank requests.

    max_documents            largest number of documents in one request
    max_document_characters  length limit of one document or query
    max_body_bytes           size limit of one request, its images included
    timeout_ms               default deadline; on expiry the response has the scores so far. 0 disables it unless the
                             request sets timeout_ms
    score_cache_bytes        memory for cached scores, shared by all rerankers; 0 disables the cache
    batching                 the queue of each reranker, counted in pairs
    images                   which images are accepted and fetched
    """

    max_documents: int = 1000
    max_document_characters: int = 1_000_000
    max_body_bytes: int = 32 << 20
    timeout_ms: float = 0.0
    score_cache_bytes: int = 64 << 20
    batching: PairBatchingConfig = field(default_factory=PairBatchingConfig)
    images: ImageConfig = field(default_factory=ImageConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP service.

    host, port      the address to listen on
    drain_seconds   how long a shutdown waits for requests in progress
    limits          limits on a search request
    batching        the queue of each collection
    reload_seconds  poll interval for new snapshots
    examples        example queries in the console, by collection
    reranking       rerank requests
    selection_log   the log of searches and clicks
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    reload_seconds: float = 1.0
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reranking: RerankingConfig = field(default_factory=RerankingConfig)
    selection_log: SelectionLogConfig = field(default_factory=SelectionLogConfig)

    def __post_init__(self) -> None:
        if not self.reload_seconds > 0:
            raise InvalidInput(f"reload_seconds is {self.reload_seconds}, expected above 0")
        if self.limits.max_batch_searches > self.batching.max_waiting:
            raise InvalidInput(
                f"limits.max_batch_searches ({self.limits.max_batch_searches}) exceeds batching.max_waiting "
                f"({self.batching.max_waiting}): the largest batch could never be queued"
            )
        if self.reranking.max_documents > self.reranking.batching.max_waiting:
            raise InvalidInput(
                f"reranking.max_documents ({self.reranking.max_documents}) exceeds reranking.batching.max_waiting "
                f"({self.reranking.batching.max_waiting}): the largest request could never be queued"
            )
