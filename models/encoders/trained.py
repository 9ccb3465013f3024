"""Encoders from folders that `chamfer train` wrote; several over one frozen backbone give all kinds in one pass."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    F32,
    I64,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.models.backends.backend import Backbone, load_backbone
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.backends.token_batches import Batch, Tokenizer, token_batches
from chamfer.models.encoders.mini import normalised
from chamfer.models.networks.checkpoint import (
    Checkpoint,
    Description,
    fingerprint,
    open_checkpoint,
    open_trained_tower,
    weights_digest,
)
from chamfer.models.networks.heads import SparseHead, SparseHeadConfig
from chamfer.models.networks.stem_vocabulary import PlacedTerms, TermConfig, Terms
from chamfer.models.networks.token_pooling import MIN_TOKEN_WEIGHT
from chamfer.models.networks.transformer import folder_of

_SPARSE_TOKENS = 512  # tokens in one call of the sparse head, whose logits take 4 bytes a term and token


class TrainedEncoder:
    """Dense, token and sparse vectors from one forward pass. Made by `load_trained_encoder`.

    Dense is the mean of the last layer over real tokens, normalised; it is missing where an adapter that was trained
    for another kind has changed the backbone.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        towers: tuple[Backbone, Backbone],
        tokenizer: Tokenizer,
        heads: Heads,
        batch_tokens: int,
    ) -> None:
        self.spec = spec
        self._query_tower, self._document_tower = towers
        self._tokenizer = tokenizer
        self._heads = heads
        self._batch_tokens = batch_tokens

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. Images are refused. Sparse queries need no forward pass."""
        for query in queries:
            if query.image is not None:
                raise InvalidInput(f"encoder {self.spec.name} reads text only, query {query.query_id!r} has an image")
        texts = [query.text for query in queries]
        sparse = self._heads.sparse_queries(texts) if VectorKind.SPARSE in kinds else None
        rest = [kind for kind in kinds if kind != VectorKind.SPARSE]
        return self._encode(texts, rest, sparse, query=True)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. An image beside the text is ignored."""
        return self._encode([document.content for document in documents], kinds, None, query=False)

    def _encode(
        self, texts: Sequence[str], kinds: Collection[VectorKind], sparse: SparseVectors | None, *, query: bool
    ) -> Encoding:
        if unknown := set(kinds) - set(self.spec.dims):
            raise InvalidInput(f"encoder {self.spec.name} gives {sorted(self.spec.dims)}, not {sorted(unknown)}")
        limit = self.spec.query_tokens if query else self.spec.document_tokens
        tokens = self._tokenizer(texts, limit)
        n = len(texts)
        dense = np.zeros((n, self.spec.dims.get(VectorKind.DENSE, 0)), dtype=np.float32)
        matrices: list[F32] = [np.empty(0, dtype=np.float32)] * n
        pooling_weights: list[F32] = [np.empty(0, dtype=np.float32)] * n
        rows: list[tuple[I64, F32]] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * n
        tower = self._query_tower if query else self._document_tower
        batches = token_batches(tokens, limit=limit, budget=self._batch_tokens, pad_id=self._tokenizer.pad_id)
        for batch in batches if kinds else ():
            hidden = tower(batch.ids, batch.mask)
            for line, row in enumerate(batch.rows):
                # Text by text, so that the shapes, and with them the bits, do not depend on the batch.
                states = hidden[line, : batch.lengths[line]]
                if VectorKind.DENSE in kinds:
                    dense[row] = normalised(states[:, -dense.shape[1] :].mean(axis=0))
                if VectorKind.TOKENS in kinds:
                    ids = batch.ids[line, : batch.lengths[line]]
                    matrices[row] = self._heads.token_vectors(states, ids, query=query)
                    if not query and self._heads.has_pooling_weights:
                        pooling_weights[row] = self._heads.pooling_weights(states, ids)
            if VectorKind.SPARSE in kinds:
                placed = [self._heads.placed(texts[row], tokens.ids[row], self._tokenizer) for row in batch.rows]
                for row, terms in zip(batch.rows, self._heads.sparse_rows(hidden, batch, placed), strict=True):
                    rows[row] = terms
        return Encoding(
            tokens.n_tokens,
            tokens.truncated,
            dense=DenseVectors(dense) if VectorKind.DENSE in kinds else None,
            tokens=_ragged(matrices, pooling_weights, self.spec.dims[VectorKind.TOKENS])
            if VectorKind.TOKENS in kinds
            else None,
            sparse=_sparse(rows, self.spec.dims[VectorKind.SPARSE]) if VectorKind.SPARSE in kinds else sparse,
        )


class Heads:
    """The trained heads: as arrays, and for the sparse one, whose logits are most of the work, as a graph."""

    def __init__(
        self, states: dict[str, dict[str, F32]], pooled_power: float, sparse: Backbone | None, terms: Terms | None
    ) -> None:
        self._token_head = states.get("tokens", {})
        self._power = np.float32(pooled_power)
        self._sparse_head = states.get("sparse", {})
        self._sparse_graph = sparse
        self._terms = terms

    def token_vectors(self, hidden: F32, ids: I64, *, query: bool) -> F32:
        """f32 [L, dim] of hidden states f32 [L, W] and ids i64 [L]: chamfer.models.networks.heads.TokenHead."""
        hidden = hidden[:, : self._token_head["project.weight"].shape[1]]
        vectors = normalised(hidden @ self._token_head["project.weight"].T)
        if query and "weigh.weight" in self._token_head:
            logits = hidden @ self._token_head["weigh.weight"].T + self._token_head["weigh.bias"]
            vectors = vectors * np.logaddexp(np.float32(0), logits)
        if query and "terms" in self._token_head:
            vectors = vectors * self._token_head["terms"][ids, None]
        return np.ascontiguousarray(vectors, dtype=np.float32)

    @property
    def has_pooling_weights(self) -> bool:
        """Whether document tokens carry weights for pooling."""
        return "count.weight" in self._token_head

    def pooling_weights(self, hidden: F32, ids: I64) -> F32:
        """Weights f32 [L] > 0 of document tokens: chamfer.models.networks.heads.TokenHead.pooling_weights."""
        head = self._token_head
        hidden = hidden[:, : head["count.weight"].shape[1]]
        weights: F32 = np.logaddexp(np.float32(0), hidden @ head["count.weight"][0] + head["count.bias"][0])
        if "terms" in head:
            weights = weights * head["terms"][ids] ** self._power
        return np.maximum(weights, np.float32(MIN_TOKEN_WEIGHT))

    def placed(self, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> PlacedTerms:
        """The terms of a document, with their positions."""
        return self._known_terms().document(text, ids, tokenizer)

    def sparse_rows(self, hidden: F32, batch: Batch, placed: Sequence[PlacedTerms]) -> list[tuple[I64, F32]]:
        """(terms i64, weights f32) of every row of a batch: chamfer.models.networks.heads.SparseHead."""
        assert self._sparse_graph is not None
        width = self._sparse_head["transform.weight"].shape[1]
        step = max(1, _SPARSE_TOKENS // batch.ids.shape[1])
        rows = []
        for start in range(0, len(batch.rows), step):
            part = slice(start, start + step)
            inputs = np.ascontiguousarray(hidden[part, :, :width])
            expansions = self._sparse_graph(inputs, batch.mask[part])
            for states, expansion, terms in zip(inputs, expansions, placed[part], strict=True):
                weights = np.zeros(len(self._known_terms()), dtype=np.float32)
                weights[: len(expansion)] = expansion
                weights[terms.terms] += self._present(states, terms)
                nonzero = np.flatnonzero(weights > 0)
                rows.append((nonzero, weights[nonzero]))
        return rows

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Every distinct term of a query: its number of occurrences times its weight from the table."""
        idf, terms = self._sparse_head["idf"], self._known_terms()
        queries = [terms.query(text) for text in texts]
        rows = [(numbers, counts * idf[numbers.clip(max=len(idf) - 1)]) for numbers, counts in queries]
        return _sparse(rows, len(terms))

    def _present(self, hidden: F32, terms: PlacedTerms) -> F32:
        """Weights f32 [n] of the terms that occur in a text: chamfer.models.networks.heads.SparseHead.present."""
        head = self._sparse_head
        presence = np.logaddexp(np.float32(0), hidden @ head["presence.weight"][0] + head["presence.bias"][0])
        best = np.zeros(len(terms.terms), dtype=np.float32)
        best[terms.truncated] = 1.0
        tokens = np.flatnonzero(terms.at >= 0)
        np.maximum.at(best, terms.at[tokens], presence[tokens].astype(np.float32))
        weights: F32 = terms.saturation * best
        return weights

    def _known_terms(self) -> Terms:
        if self._terms is None:
            raise InvalidInput("this encoder has no sparse head")
        return self._terms


def load_trained_encoder(name: str, folders: Sequence[Path], config: DeviceConfig) -> TrainedEncoder:
    """One encoder of all folders.

    InvalidInput where backbone, features or limits differ, where a kind occurs twice, or where several folders share a
    backbone that an adapter has changed.
    """
    checkpoints = {folder: open_checkpoint(folder) for folder in folders}
    descriptions = [checkpoint.description for checkpoint in checkpoints.values()]
    by_kind = {checkpoint.description.kind: checkpoint for checkpoint in checkpoints.values()}
    shared = {(d.backbone, d.features, d.query_tokens, d.document_tokens) for d in descriptions}
    adapted = any(description.adapter_scale for description in descriptions)
    if len(shared) > 1 or len(by_kind) < len(folders) or "cross" in by_kind or (adapted and len(folders) > 1):
        raise InvalidInput(f"{', '.join(map(str, folders))} do not make one encoder: {descriptions}")
    first = descriptions[0]
    digests = {checkpoint.description.kind: fingerprint(folder) for folder, checkpoint in checkpoints.items()}
    spec = EncoderSpec(
        name=name,
        dims=_dims(by_kind),
        query_tokens=first.query_tokens,
        document_tokens=first.document_tokens,
        fingerprint=digest_of("trained", *digests.values()),
    )
    served = _served(first, dense=VectorKind.DENSE in spec.dims)
    towers = _towers(served, checkpoints[folders[0]], digests[first.kind], config)
    tokenizer = Tokenizer(folder_of(first.backbone) / "tokenizer.json")
    return TrainedEncoder(spec, towers, tokenizer, _heads(by_kind, digests, config), config.batch_tokens)


def _towers(
    served: Description, checkpoint: Checkpoint, digest: str, config: DeviceConfig
) -> tuple[Backbone, Backbone]:
    """The towers of queries and of documents; they are one unless the adapter changes queries alone."""
    frozen = digest_of("tower", weights_digest(folder_of(served.backbone)), served.features)
    adapter = checkpoint.adapter
    queries = load_backbone(
        lambda: open_trained_tower(served, adapter), digest_of(frozen, digest) if adapter else frozen, config
    )
    if served.adapted == "both":
        return queries, queries
    return queries, load_backbone(lambda: open_trained_tower(served, {}), frozen, config)


def _heads(by_kind: Mapping[str, Checkpoint], digests: Mapping[str, str], config: DeviceConfig) -> Heads:
    arrays = {kind: {n: t.numpy() for n, t in checkpoint.head.items()} for kind, checkpoint in by_kind.items()}
    graph = terms = None
    if sparse := by_kind.get("sparse"):
        graph = _sparse_graph(sparse, digests["sparse"], config)
        terms = Terms(arrays["sparse"]["names"], TermConfig(**sparse.description.head["terms"]))
    power = float(by_kind["tokens"].description.head.get("pooled_power", 0.0)) if "tokens" in by_kind else 0.0
    return Heads(arrays, power, graph, terms)


def _served(description: Description, *, dense: bool) -> Description:
    """The description of a tower that gives the heads' features followed by the last layer, for dense vectors."""
    if not dense or description.features[-1:] == ("last",):
        return description
    return replace(description, features=(*description.features, "last"))


def _dims(by_kind: Mapping[str, Checkpoint]) -> dict[VectorKind, int]:
    descriptions = [checkpoint.description for checkpoint in by_kind.values()]
    config = json.loads((folder_of(descriptions[0].backbone) / "config.json").read_text(encoding="utf-8"))
    dims: dict[VectorKind, int] = {}
    if "dense" in by_kind or not any(description.adapter_scale for description in descriptions):
        dims[VectorKind.DENSE] = int(config["hidden_size"])
    if tokens := by_kind.get("tokens"):
        dims[VectorKind.TOKENS] = int(tokens.head["project.weight"].shape[0])
    if sparse := by_kind.get("sparse"):
        dims[VectorKind.SPARSE] = len(sparse.head["names"]) + int(sparse.description.head["terms"]["buckets"])
    return dims


def _sparse_graph(checkpoint: Checkpoint, digest: str, config: DeviceConfig) -> Backbone:
    state = checkpoint.head
    width = state["transform.weight"].shape[1]

    def load() -> torch.nn.Module:
        settings = {name: value for name, value in checkpoint.description.head.items() if name != "terms"}
        vocabulary, dim = state["embeddings"].shape
        head = SparseHead(width, vocabulary, dim, SparseHeadConfig(**settings))
        head.load_state_dict(state)
        return head.eval()

    inputs = (((2, 8, width), "float32"), ((2, 8), "int64"))
    return load_backbone(load, digest_of("sparse head", digest), config, inputs)


def _ragged(matrices: Sequence[F32], pooling_weights: Sequence[F32], dim: int) -> TokenVectors:
    offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
    np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
    values = np.concatenate([*matrices, np.empty((0, dim), dtype=np.float32)])
    weights = np.concatenate([*pooling_weights, np.empty(0, dtype=np.float32)])
    return TokenVectors(values, offsets, weights if len(weights) == len(values) and len(values) else None)


def _sparse(rows: Sequence[tuple[I64, F32]], vocabulary: int) -> SparseVectors:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(terms) for terms, _ in rows], out=offsets[1:])
    terms = np.concatenate([np.empty(0, dtype=np.int64), *(terms for terms, _ in rows)]).astype(np.int32)
    weights = np.concatenate([np.empty(0, dtype=np.float32), *(weights for _, weights in rows)]).astype(np.float32)
    return SparseVectors(weights, terms, offsets, vocabulary)
