"""Encoders that sentence-transformers loads, by hub name or local path: dense, multi-vector or sparse.

Prompts and the roles of query and document are the model's own. Queries are encoded one at a time, because in torch
the last bits of a vector depend on the shape of the batch, and a query's vector must not depend on concurrent requests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
    Vectors,
)
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.backends.hub import model_fingerprint, open_model
from chamfer.models.backends.token_batches import clean, length_groups

_CLASSES = {
    VectorKind.DENSE: "SentenceTransformer",
    VectorKind.TOKENS: "MultiVectorEncoder",
    VectorKind.SPARSE: "SparseEncoder",
}


class HubEncoder:
    """A sentence-transformers model that produces one kind of vectors. Made by `load_hub_encoder`."""

    def __init__(self, spec: EncoderSpec, kind: VectorKind, model: Any, batch_tokens: int) -> None:
        self.spec = spec
        self._kind = kind
        self._model = model
        self._batch_tokens = batch_tokens

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. Images are refused."""
        for query in queries:
            if query.image is not None:
                raise InvalidInput(f"encoder {self.spec.name} reads text only, query {query.query_id!r} has an image")
        return self._encode([query.text for query in queries], kinds, self._model.encode_query, alone=True)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder."""
        return self._encode(
            [document.content for document in documents], kinds, self._model.encode_document, alone=False
        )

    def _encode(self, texts: Sequence[str], kinds: Collection[VectorKind], encode: Any, *, alone: bool) -> Encoding:
        if unknown := set(kinds) - {self._kind}:
            raise InvalidInput(f"encoder {self.spec.name} gives {self._kind}, not {sorted(unknown)}")
        cleaned = [clean(text) for text in texts]
        n_tokens = _count_tokens(self._model, cleaned)
        limit = self.spec.query_tokens if alone else self.spec.document_tokens
        truncated = n_tokens > limit
        if not kinds or not texts:
            return Encoding(n_tokens, truncated)
        lengths = np.minimum(n_tokens, limit).tolist()
        budget = 1 if alone else self._batch_tokens
        parts: list[Vectors] = []
        order: list[int] = []
        for _, rows in length_groups(lengths, limit=limit, budget=budget):
            encoded = encode([cleaned[row] for row in rows], batch_size=len(rows), show_progress_bar=False)
            parts.append(_to_vectors(self._kind, encoded, self.spec.dims[self._kind]))
            order += rows
        vectors = _concatenate(parts).take(np.argsort(order))
        return Encoding(n_tokens, truncated, **{self._kind.value: vectors})


def load_hub_encoder(name: str, model_name: str, kind: VectorKind, config: DeviceConfig) -> HubEncoder:
    """The encoder of this hub name or local path. Raises as chamfer.models.backends.hub.open_model does."""
    model = open_model(_CLASSES[kind], model_name, config)
    limit = int(model.max_seq_length or 512)
    spec = EncoderSpec(
        name=name,
        dims={kind: _dim(model, kind)},
        query_tokens=limit,
        document_tokens=limit,
        fingerprint=model_fingerprint(model),
    )
    return HubEncoder(spec, kind, model, config.batch_tokens)


def _count_tokens(model: Any, texts: Sequence[str]) -> Any:
    """Number of tokens i32 [N] of each text before truncation, special ones included."""
    if not texts:
        return np.zeros(0, dtype=np.int32)
    encoded = model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    return np.array([len(ids) for ids in encoded], dtype=np.int32)


def _dim(model: Any, kind: VectorKind) -> int:
    if kind is VectorKind.SPARSE:  # get_embedding_dimension gives the width of the backbone here
        return int(model.encode_document(["?"], show_progress_bar=False).shape[1])
    dim = model.get_embedding_dimension()
    if dim is None:
        raise Internal(f"the model does not declare the dimension of its {kind} vectors")
    return int(dim)


def _to_vectors(kind: VectorKind, encoded: Any, dim: int) -> Vectors:
    if kind is VectorKind.DENSE:
        return DenseVectors(np.ascontiguousarray(encoded, dtype=np.float32))
    if kind is VectorKind.TOKENS:
        matrices = [np.asarray(m.float().cpu().numpy(), dtype=np.float32).reshape(-1, dim) for m in encoded]
        offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
        np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
        return TokenVectors(np.concatenate(matrices), offsets)
    indices = encoded.coalesce().indices().cpu().numpy()
    weights = encoded.coalesce().values().float().cpu().numpy()
    keep = weights > 0
    offsets = np.zeros(encoded.shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(indices[0][keep], minlength=encoded.shape[0]), out=offsets[1:])
    return SparseVectors(weights[keep].astype(np.float32), indices[1][keep].astype(np.int32), offsets, dim)


def _concatenate(parts: list[Any]) -> Any:
    return type(parts[0]).concatenate(parts)
