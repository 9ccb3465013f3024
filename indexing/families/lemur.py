"""Family `lemur`: one vector per document, learnt for the corpus (LEMUR, chamfer.indexing.kernels.lemur).

Like `fde` it gives a single vector for late interaction. It needs fewer dimensions, but has to be trained and does not
transfer to another corpus. As with `fde`, let `multivector` score the candidates exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.protocols import Retriever
from chamfer.core.types import F32, Array, Bool, Candidates, Document, Encoding, TokenVectors, VectorKind
from chamfer.indexing.families.family import check_finite, check_tokens
from chamfer.indexing.kernels.lemur import (
    DocumentFit,
    FeatureMap,
    Fit,
    encode_queries,
    inverse_of,
    largest_products,
    train_features,
)
from chamfer.indexing.rows.merge import merge_rows
from chamfer.indexing.rows.scan import RowScan
from chamfer.indexing.rows.segment_part import Codec, SegmentPart
from chamfer.indexing.rows.storage.protocol import Storage
from chamfer.indexing.rows.storage.registry import STORAGES

_MAP = ("weight", "bias", "gain", "shift")
_ARRAYS = (*_MAP, "tokens", "inverse", "standard")
_EMPTY_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class LemurConfig:
    """The map and its training. The defaults suit a CPU; the paper's values are in brackets.

    dim                  length of a vector [2048]
    target_documents     documents whose MaxSim terms the map learns to predict [8192]
    training_tokens      tokens of the sample that it learns from [100,000]
    epochs               0 leaves the map random, which needs two to four times the candidates [100]
    fit_tokens           tokens on which every document's vector is fitted [16,384]; they dominate the cost of packing
    seed                 of all random draws
    storage              int8: one byte per dimension and one scale per document; float16: two bytes
    """

    dim: int = 1024
    target_documents: int = 512
    training_tokens: int = 16_384
    epochs: int = 10
    fit_tokens: int = 8_192
    seed: int = 1
    storage: Literal["int8", "float16"] = "int8"

    def __post_init__(self) -> None:
        least = min(self.dim, self.target_documents, self.training_tokens, self.fit_tokens)
        if least < 1 or self.epochs < 0 or self.dim > 1 << 14:
            raise InvalidInput(
                f"lemur dim {self.dim}, target_documents {self.target_documents}, training_tokens "
                f"{self.training_tokens}, epochs {self.epochs}, fit_tokens {self.fit_tokens}; expected all >= 1, "
                f"epochs >= 0, dim <= {1 << 14}"
            )


class LemurFamily:
    """See chamfer.indexing.families.family.Family. Arrays: values i8 or f16 [N, dim]; for int8 scales f32 [N]."""

    name: ClassVar[str] = "lemur"
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS
    learns: ClassVar[bool] = True

    def __init__(self, config: LemurConfig, device: str = "cpu") -> None:
        self.config = config
        self._device = device
        self._fit: Fit | None = None
        self._documents: DocumentFit | None = None

    def on_device(self, device: str) -> Self:
        family = type(self)(self.config, device)
        family._fit = self._fit
        return family

    def learn(self, encoding: Encoding | None) -> Codec:
        """Trains the map on the sample's documents. Empty if no document has tokens."""
        if encoding is None or encoding.tokens is None or not len(encoding.tokens.values):
            return {}
        fit = _learn(encoding.tokens, self.config, self._device)
        codec: dict[str, Array] = {name: getattr(fit.features, name) for name in _MAP}
        return codec | {
            "tokens": fit.tokens,
            "inverse": fit.inverse,
            "standard": np.array([fit.mean, fit.deviation], dtype=np.float32),
        }

    def with_codec(self, codec: Codec) -> Self:
        family = type(self)(self.config, self._device)
        if codec:
            if missing := [name for name in _ARRAYS if name not in codec]:
                raise Incompatible(f"the lemur channel's codec lacks {missing}; build the collection again")
            features = FeatureMap(*(np.array(codec[name]) for name in _MAP))
            mean, deviation = (float(x) for x in codec["standard"])
            family._fit = Fit(features, np.array(codec["tokens"]), np.array(codec["inverse"]), mean, deviation)
        return family

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the lemur channel needs token vectors from the encoder")
        if self._fit is None:
            if len(encoding.tokens.values):
                raise InvalidInput(
                    "the lemur channel has no codec: the sample from which the collection learnt had no tokens; "
                    "build it again with documents that have some"
                )
            return self._storage.pack(np.zeros((len(documents), self.config.dim), dtype=np.float32), {})
        check_tokens(encoding.tokens.values, len(self._fit.features.weight), self.name, "document")
        if self._documents is None:
            self._documents = DocumentFit(self._fit, self._device)
        values = self._documents(encoding.tokens.values, encoding.tokens.offsets)
        return self._storage.pack(values, {})

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return merge_rows(parts, parts[0].arrays)

    def open(self, parts: Sequence[SegmentPart]) -> LemurRetriever:
        return LemurRetriever(parts, self._storage, None if self._fit is None else self._fit.features)

    @property
    def _storage(self) -> Storage:
        return STORAGES[self.config.storage]


class LemurRetriever(Retriever[TokenVectors]):
    """Inner products with the query's vector; scores estimate MaxSim up to a shift and a scale for each query."""

    def __init__(self, parts: Sequence[SegmentPart], storage: Storage, features: FeatureMap | None) -> None:
        self._rows = RowScan(parts, storage, {}, list(parts[0].arrays) if parts else [])
        self._features = features

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows per query."""
        return self._rows.search(len(queries), self._encoded(queries), k, allowed)

    def with_params(self, **params: Any) -> Self:
        if params:
            raise InvalidInput(f"a lemur scan has no parameters, got {sorted(params)}")
        return self

    def _encoded(self, queries: TokenVectors) -> F32 | None:
        if self._features is None:
            return None
        values = np.asarray(queries.values, dtype=np.float32)
        check_tokens(values, len(self._features.weight), LemurFamily.name, "query")
        return encode_queries(values, queries.offsets, self._features)


def _learn(tokens: TokenVectors, config: LemurConfig, device: str) -> Fit:
    import torch

    draw = np.random.default_rng(config.seed)
    values = np.ascontiguousarray(tokens.values, dtype=np.float32)
    check_finite(values, "document")
    inputs = values[_draw(draw, len(values), config.training_tokens)]
    fitted = values[_draw(draw, len(values), config.fit_tokens)]
    filled = np.flatnonzero(np.diff(tokens.offsets))
    chosen = filled[_draw(draw, len(filled), config.target_documents)]
    on_device = torch.from_numpy(inputs).to(device)
    targets = largest_products(on_device, torch.from_numpy(values).to(device), tokens.offsets, chosen)
    mean, deviation = float(targets.mean()), max(float(targets.std(correction=0)), _EMPTY_DEVIATION)
    targets.sub_(mean).div_(deviation)
    features = _last(train_features(on_device, targets, config.dim, config.epochs, config.seed))
    return Fit(features, fitted, inverse_of(torch.from_numpy(features(fitted)).to(device)), mean, deviation)


def _draw(draw: np.random.Generator, n: int, most: int) -> Array:
    return np.sort(draw.permutation(n)[:most])


def _last(epochs: Iterator[tuple[FeatureMap, float]]) -> FeatureMap:
    *_, (features, _) = epochs
    return features
