"""Token pooling on top of any encoder of token vectors: `NAME+POOLING`, for example `mini+c0x32`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder, EncoderSpec
from chamfer.core.types import Document, Encoding, Query, VectorKind
from chamfer.models.networks.token_pooling import Pooling, PoolingRules, pool


class PooledEncoder:
    """The encoder `inner` with its token vectors pooled, text by text; other kinds pass through unchanged."""

    def __init__(self, inner: Encoder, rules: PoolingRules) -> None:
        if VectorKind.TOKENS not in inner.spec.dims:
            raise InvalidInput(
                f"encoder {inner.spec.name!r} gives {sorted(inner.spec.dims)}; pooling {rules.name!r} needs tokens"
            )
        self._inner = inner
        self._rules = rules
        self.spec: EncoderSpec = replace(
            inner.spec,
            name=f"{inner.spec.name}+{rules.name}",
            fingerprint=digest_of("pooled", inner.spec.fingerprint, rules.name),
        )

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder."""
        return self._pooled(self._inner.encode_queries(queries, kinds), self._rules.query)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder."""
        return self._pooled(self._inner.encode_documents(documents, kinds), self._rules.document)

    def _pooled(self, encoding: Encoding, rule: Pooling) -> Encoding:
        if encoding.tokens is None:
            return encoding
        return replace(encoding, tokens=pool(encoding.tokens, rule, normalised=self._rules.normalised))
