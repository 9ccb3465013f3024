"""Family `multivector`: token vectors of every document, scored by exact MaxSim.

With centroids, a search first ranks all documents by centroid scores (chamfer.indexing.kernels.centroids), which costs
one byte maximum per token, and scores only the best of them by MaxSim. `search_mode` "exact" scores all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from chamfer.core.artifact import ArrayStream
from chamfer.core.errors import Incompatible, InvalidInput
from chamfer.core.types import F32, Array, Document, Encoding, VectorKind
from chamfer.indexing.families.family import OnCpu, check_finite, check_tokens
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.search import NAME, MultivectorRetriever, SearchMode
from chamfer.indexing.families.multivector.token_storage import merge_tokens
from chamfer.indexing.kernels.centroids import assign, train
from chamfer.indexing.kernels.codes import TokenCodec, encode, learn_step
from chamfer.indexing.rows.segment_part import Codec, SegmentPart

_LONGER_AS_CODE = 1.002  # upper bound: the scale and the decoded values are rounded


class MultivectorFamily(OnCpu):
    """See chamfer.indexing.families.family.Family. Arrays: those of StoredTokens, largest_norm f64 [1].

    Codec: centroids f32 [K, D] (one mean if the configuration has none), step f32 [D] for codes. Floats have none.
    """

    name: ClassVar[str] = NAME
    kind: ClassVar[VectorKind | None] = VectorKind.TOKENS

    def __init__(self, config: MultivectorConfig) -> None:
        self.config = config
        self._centroids: F32 | None = None
        self._codec: TokenCodec | None = None

    @property
    def learns(self) -> bool:
        return bool(self._needs)

    def learn(self, encoding: Encoding | None) -> Codec:
        """Centroids and steps from the token vectors of the sample."""
        if encoding is None or encoding.tokens is None or not self._needs:
            return {}
        check_finite(encoding.tokens.values, "document")
        tokens = encoding.tokens.values.astype(np.float32)
        if not len(tokens):
            tokens = np.zeros((1, encoding.tokens.dim), dtype=np.float32)
        centroids = train(tokens, max(self.config.centroids, 1), self.config.seed)
        if self.config.bits is None:
            return {"centroids": centroids}
        return {"centroids": centroids, "step": learn_step(tokens, centroids, self.config.bits)}

    def with_codec(self, codec: Codec) -> Self:
        family = type(self)(self.config)
        if stray := set(codec) - self._needs:
            raise Incompatible(f"the multivector channel has no use for {sorted(stray)} in the collection's codec")
        if codec:
            if missing := self._needs - set(codec):
                raise Incompatible(
                    f"the multivector channel's codec lacks {sorted(missing)}; build the collection again"
                )
            family._centroids = np.array(codec["centroids"])
            if self.config.bits is not None:
                family._codec = TokenCodec(family._centroids, np.array(codec["step"]), self.config.bits)
        return family

    def pack(self, documents: Sequence[Document], encoding: Encoding | None) -> dict[str, Array]:
        if encoding is None or encoding.tokens is None:
            raise InvalidInput("the multivector channel needs token vectors from the encoder")
        if self._needs and self._centroids is None:
            raise InvalidInput("the multivector channel has no codec yet; a collection learns it from its sample")
        tokens = encoding.tokens.values
        self._check(tokens)
        norms = np.linalg.norm(tokens.astype(np.float32), axis=1)
        arrays = {
            "offsets": encoding.tokens.offsets,
            "largest_norm": norms.max(initial=0.0, keepdims=True).astype(np.float64),
        }
        if self._codec is None:
            arrays["values"] = tokens.astype(self.config.storage)
            if self.config.centroids and self._centroids is not None:
                arrays["centroid_ids"] = assign(tokens, self._centroids).astype(np.uint16)
            return arrays
        arrays["values"], ids, arrays["scales"] = encode(tokens, self._codec)
        arrays["largest_norm"] *= _LONGER_AS_CODE
        return arrays | ({"centroid_ids": ids} if self.config.centroids else {})

    def _check(self, tokens: Array) -> None:
        """Raises InvalidInput for token vectors [T, D] that the channel cannot store."""
        dim = tokens.shape[1] if self._centroids is None else self._centroids.shape[1]
        check_tokens(tokens, dim, self.name, "document")
        if len(tokens) and self._centroids is not None and not self._centroids.any():
            raise InvalidInput(
                "the multivector channel's centroids were learnt from a sample without a token; build the collection "
                "again with documents that have some, or with multivector.storage float16 and multivector.centroids 0"
            )
        largest = np.abs(tokens).max(initial=0)
        if self.config.storage != "float32" and largest > np.finfo(np.float16).max:
            raise InvalidInput(
                f"a token vector holds {largest:.3g}, which {self.config.storage} storage cannot represent; encode "
                "vectors of unit length, or set multivector.storage to float32"
            )

    def merge(self, parts: Sequence[SegmentPart]) -> dict[str, Array | ArrayStream]:
        return merge_tokens(parts)

    def open(self, parts: Sequence[SegmentPart]) -> MultivectorRetriever:
        mode: SearchMode = "centroids" if self.config.centroids else "exact"
        centroids = self._centroids if self.config.centroids else None
        return MultivectorRetriever(parts, self._codec, centroids, mode, (self.config.candidates, self.config.margin))

    @property
    def _needs(self) -> set[str]:
        if self.config.bits is not None:
            return {"centroids", "step"}
        return {"centroids"} if self.config.centroids else set()
