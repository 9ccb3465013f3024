"""A cache of reranker scores, keyed by digests of model, query and document and bounded in bytes.

Callers that share a `CachedReranker` score a pair once: for example retrieval by the cross-encoder and the reranking
after it. The same text under another doc_id is the same pair.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Pair, PairReranker
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.pair_scores import scores_of

DIGEST_BYTES = 16
# A key of 16 bytes (49 as an object), a float (24), and slots of a dict that is between half full and full.
ENTRY_BYTES = 200


class ScoreCache:
    """Evicts the least recently used scores. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InvalidInput(f"the score cache has {max_bytes} bytes, expected 0 (no cache) or more")
        self._max_entries = max_bytes // ENTRY_BYTES
        self._scores: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def n_bytes(self) -> int:
        """Estimated memory of the entries."""
        return len(self._scores) * ENTRY_BYTES

    def get(self, keys: Sequence[bytes]) -> F32:
        """Cached scores f32 [n]; NaN for keys that are not cached."""
        cached = np.full(len(keys), np.nan, dtype=np.float32)
        with self._lock:
            for row, key in enumerate(keys):
                score = self._scores.pop(key, None)
                if score is not None:
                    self._scores[key] = cached[row] = score  # moved to the end: dicts keep the order of insertion
            misses = int(np.isnan(cached).sum())
            self.misses += misses
            self.hits += len(keys) - misses
        return cached

    def put(self, keys: Sequence[bytes], scores: F32) -> None:
        """Caches scores f32 [n], except those that are not finite."""
        with self._lock:
            for key, score in zip(keys, scores.tolist(), strict=True):
                if np.isfinite(score):
                    self._scores[key] = score
            while len(self._scores) > self._max_entries:
                del self._scores[next(iter(self._scores))]


class CachedReranker:
    """A reranker behind a score cache; its scores are those of the reranker."""

    def __init__(self, reranker: PairReranker, cache: ScoreCache) -> None:
        self.name = reranker.name
        self.fingerprint = reranker.fingerprint
        self.reads_images = reranker.reads_images
        self.score_kind = reranker.score_kind
        self._reranker = reranker
        self._cache = cache

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. A pair that occurs twice is scored once."""
        keys = pair_keys(self.fingerprint, pairs)
        scores = self._cache.get(keys)
        missing = {keys[row]: row for row in np.flatnonzero(np.isnan(scores)).tolist()}
        if missing:
            computed = self._reranker.score_pairs([pairs[row] for row in missing.values()])
            self._cache.put(list(missing), computed)
            fresh = dict(zip(missing, computed.tolist(), strict=True))
            for row, key in enumerate(keys):
                if key in fresh:
                    scores[row] = fresh[key]
        return scores


def pair_keys(fingerprint: str, pairs: Sequence[Pair]) -> list[bytes]:
    """A digest of 16 bytes for each pair, over model, query and document (texts and images)."""
    queries: dict[int, bytes] = {}
    keys = []
    for query, document in pairs:
        if id(query) not in queries:  # the pairs of a request share their query
            queries[id(query)] = _digest(query.text.encode("utf-8", "replace"), _image_bytes(query.image))
        digest = _digest(document.content.encode("utf-8", "replace"), _image_bytes(document.image))
        keys.append(_digest(fingerprint.encode(), queries[id(query)], digest))
    return keys


def _image_bytes(image: Path | bytes | None) -> bytes:
    if isinstance(image, Path):  # by name and time: reading it would cost what the cache saves
        return f"{image}:{image.stat().st_mtime_ns}".encode() if image.exists() else str(image).encode()
    return b"" if image is None else image


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
