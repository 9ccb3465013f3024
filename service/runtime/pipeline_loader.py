"""Opens collections with the models that they need. The one place that chooses the classes behind a pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chamfer.core.errors import Incompatible
from chamfer.core.protocols import Encoder, PairReranker, Reranker
from chamfer.service.search.channels import CollectionView
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan

if TYPE_CHECKING:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.rerankers.score_cache import ScoreCache

LoadPipeline = Callable[[Path], Pipeline]


class PipelineLoader:
    """Opens collections with their models. A model is loaded once and shared by all collections and snapshots."""

    def __init__(
        self,
        device: DeviceConfig,
        *,
        rerankers: Sequence[str] = (),
        plans: Mapping[str, Plan] | None = None,
        load_reranker: Callable[[str], Reranker] | None = None,
        score_cache_bytes: int = 0,
    ) -> None:
        """`load_reranker` loads one by name; by default on `device`, without remote rerankers."""
        self._device = device
        self._reranker_names = tuple(rerankers)
        self._load_reranker = load_reranker or self._load_local_reranker
        self._score_cache_bytes = score_cache_bytes
        self._score_cache: ScoreCache | None = None
        self._plans = dict(plans or {})
        self._encoders: dict[str, Encoder] = {}
        self._rerankers: dict[str, Reranker] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Pipeline:
        """A pipeline over the newest snapshot at `path`, not warmed up; raises NotFound, Corrupt or Incompatible."""
        from chamfer.indexing.collection.collection import Collection

        collection = Collection.open(path)
        try:
            encoder = self._encoder(collection.encoder_name, collection.encoder_fingerprint, path)
            return Pipeline(collection, encoder, self._rerankers_for(collection), plans=self._plans)
        except BaseException:
            collection.close()
            raise

    def reranker(self, name: str) -> Reranker:
        """The reranker of this name, loaded once. All pair rerankers share one cache of scores."""
        with self._lock:
            if name not in self._rerankers:
                self._rerankers[name] = self._cached(self._load_reranker(name))
            return self._rerankers[name]

    def _encoder(self, name: str | None, fingerprint: str | None, path: Path) -> Encoder | None:
        if name is None:
            return None
        from chamfer.models.registry import load_encoder

        with self._lock:
            if name not in self._encoders:
                self._encoders[name] = load_encoder(name, self._device)
            encoder = self._encoders[name]
        if encoder.spec.fingerprint != fingerprint:
            raise Incompatible(
                f"{path} was built with encoder {name} of fingerprint {str(fingerprint)[:16]}…, but the encoder loaded "
                f"here has {encoder.spec.fingerprint[:16]}…; load the original encoder, or build the collection again"
            )
        return encoder

    def _rerankers_for(self, collection: CollectionView) -> Mapping[str, Reranker]:
        """The rerankers of the settings, and those whose scores the collection stores (family `cur`)."""
        from chamfer.indexing.families.cur.family import CurConfig

        configs = [channel.family.config for channel in collection.channels.values()]
        stored = [config.reranker for config in configs if isinstance(config, CurConfig)]
        return {name: self.reranker(name) for name in dict.fromkeys([*self._reranker_names, *stored]) if name}

    def _cached(self, reranker: Reranker) -> Reranker:
        if not self._score_cache_bytes or not isinstance(reranker, PairReranker):
            return reranker
        from chamfer.models.rerankers.score_cache import CachedReranker, ScoreCache

        if self._score_cache is None:
            self._score_cache = ScoreCache(self._score_cache_bytes)
        return CachedReranker(reranker, self._score_cache)

    def _load_local_reranker(self, name: str) -> Reranker:
        from chamfer.models.registry import load_reranker

        return load_reranker(name, self._device)
