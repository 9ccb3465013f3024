"""Encoders out of folders that `chamfer train` wrote; several over one frozen backbone give all kinds in one pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from chamfer.models.backends.backend import Backbone, DeviceConfig, load_backbone
from chamfer.models.backends.token_batches import Batch, Tokenizer, token_batches
from chamfer.models.encoders.mini import normalised
from chamfer.models.networks.checkpoint import (
    Description,
    describe,
    fingerprint,
    open_trained_tower,
    parts_of,
    weights_digest,
)
from chamfer.models.networks.stem_vocabulary import PlacedTerms, TermConfig, Terms
from chamfer.models.networks.token_pooling import LEAST_WEIGHT
from chamfer.models.networks.transformer import folder_of

if TYPE_CHECKING:
    import torch

_SPARSE_TOKENS = 512  # of one call of the sparse head, whose logits take vocabulary * 4 bytes a token


class TrainedEncoder:
    """Dense, token and sparse vectors from one forward pass. Made by `load_trained_encoder`.

    Dense is the mean of the last layer over real tokens, normalised; it is there unless an adapter trained for
    another kind has changed the backbone.
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
        """See chamfer.core.protocols.Encoder. An image beside the text is not looked at."""
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
        counts: list[F32] = [np.empty(0, dtype=np.float32)] * n
        rows: list[tuple[I64, F32]] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * n
        tower = self._query_tower if query else self._document_tower
        batches = token_batches(tokens, limit=limit, budget=self._batch_tokens, pad_id=self._tokenizer.pad_id)
        for batch in batches if kinds else ():
            hidden = tower(batch.ids, batch.mask)
            for place, row in enumerate(batch.rows):
                # Text by text, so that the shapes, and with them the bits, do not depend on the batch.
                own = hidden[place, : batch.lengths[place]]
                if VectorKind.DENSE in kinds:
                    dense[row] = normalised(own[:, -dense.shape[1] :].mean(axis=0))
                if VectorKind.TOKENS in kinds:
                    ids = batch.ids[place, : batch.lengths[place]]
                    matrices[row] = self._heads.token_vectors(own, ids, query=query)
                    if not query and self._heads.counting:
                        counts[row] = self._heads.token_counts(own, ids)
            if VectorKind.SPARSE in kinds:
                placed = [self._heads.placed(texts[row], tokens.ids[row], self._tokenizer) for row in batch.rows]
                for row, terms in zip(batch.rows, self._heads.sparse_rows(hidden, batch, placed), strict=True):
                    rows[row] = terms
        return Encoding(
            tokens.n_tokens,
            tokens.truncated,
            dense=DenseVectors(dense) if VectorKind.DENSE in kinds else None,
            tokens=_ragged(matrices, counts, self.spec.dims[VectorKind.TOKENS]) if VectorKind.TOKENS in kinds else None,
            sparse=_sparse(rows, self.spec.dims[VectorKind.SPARSE]) if VectorKind.SPARSE in kinds else sparse,
        )


class Heads:
    """The trained heads, as arrays and (for the sparse one, whose logits are the work) as a graph."""

    def __init__(
        self, states: dict[str, dict[str, F32]], pooled_power: float, sparse: Backbone | None, terms: Terms | None
    ) -> None:
        self._tokens = states.get("tokens", {})
        self._power = np.float32(pooled_power)
        self._of_sparse = states.get("sparse", {})
        self._sparse = sparse
        self._terms = terms

    def token_vectors(self, hidden: F32, ids: I64, *, query: bool) -> F32:
        """f32 [L, dim] of hidden states f32 [L, W] and ids i64 [L]: chamfer.models.networks.heads.TokenHead."""
        hidden = hidden[:, : self._tokens["project.weight"].shape[1]]
        vectors = normalised(hidden @ self._tokens["project.weight"].T)
        if query and "weigh.weight" in self._tokens:
            logits = hidden @ self._tokens["weigh.weight"].T + self._tokens["weigh.bias"]
            vectors = vectors * np.logaddexp(np.float32(0), logits)
        if query and "terms" in self._tokens:
            vectors = vectors * self._tokens["terms"][ids, None]
        return np.ascontiguousarray(vectors, dtype=np.float32)

    @property
    def counting(self) -> bool:
        """Whether document tokens have weights where they are pooled."""
        return "count.weight" in self._tokens

    def token_counts(self, hidden: F32, ids: I64) -> F32:
        """Those weights, f32 [L]: chamfer.models.networks.heads.TokenHead.counts."""
        head = self._tokens
        hidden = hidden[:, : head["count.weight"].shape[1]]
        counts: F32 = np.logaddexp(np.float32(0), hidden @ head["count.weight"][0] + head["count.bias"][0])
        if "terms" in head:
            counts = counts * head["terms"][ids] ** self._power
        return np.maximum(counts, np.float32(LEAST_WEIGHT))

    def placed(self, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> PlacedTerms:
        """The terms of a document and where they stand."""
        return self._known_terms().document(text, ids, tokenizer)

    def sparse_rows(self, hidden: F32, batch: Batch, placed: Sequence[PlacedTerms]) -> list[tuple[I64, F32]]:
        """(terms i64, weights f32) of every row of a batch: chamfer.models.networks.heads.SparseHead."""
        assert self._sparse is not None
        width = self._of_sparse["transform.weight"].shape[1]
        step = max(1, _SPARSE_TOKENS // batch.ids.shape[1])
        out = []
        for start in range(0, len(batch.rows), step):
            part = slice(start, start + step)
            own = np.ascontiguousarray(hidden[part, :, :width])
            for states, others, terms in zip(own, self._sparse(own, batch.mask[part]), placed[part], strict=True):
                weights = np.zeros(len(self._known_terms()), dtype=np.float32)
                weights[: len(others)] = others
                weights[terms.terms] += self._standing(states, terms)
                found = np.flatnonzero(weights > 0)
                out.append((found, weights[found]))
        return out

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Every distinct term of a query: how often it stands there, times its weight from the table."""
        idf, terms = self._of_sparse["idf"], self._known_terms()
        asked = [terms.query(text) for text in texts]
        return _sparse([(own, counts * idf[own.clip(max=len(idf) - 1)]) for own, counts in asked], len(terms))

    def _standing(self, hidden: F32, terms: PlacedTerms) -> F32:
        """The weights of the terms that stand in a text, f32 [n]."""
        head = self._of_sparse
        presence = np.logaddexp(np.float32(0), hidden @ head["presence.weight"][0] + head["presence.bias"][0])
        best = np.zeros(len(terms.terms), dtype=np.float32)
        best[terms.unread] = 1.0
        begins = np.flatnonzero(terms.at >= 0)
        np.maximum.at(best, terms.at[begins], presence[begins].astype(np.float32))
        out: F32 = terms.saturation * best
        return out

    def _known_terms(self) -> Terms:
        if self._terms is None:
            raise InvalidInput("this encoder has no sparse head")
        return self._terms


def load_trained_encoder(name: str, folders: Sequence[Path], config: DeviceConfig) -> TrainedEncoder:
    """One encoder of all folders. InvalidInput where backbone, features or limits differ, or a kind comes twice."""
    descriptions = [describe(folder) for folder in folders]
    first = descriptions[0]
    kinds = [description.kind for description in descriptions]
    shared = {(d.backbone, d.features, d.query_tokens, d.document_tokens) for d in descriptions}
    adapted = any(description.adapter_scale for description in descriptions)
    if len(shared) > 1 or len(set(kinds)) < len(kinds) or "cross" in kinds or (adapted and len(folders) > 1):
        raise InvalidInput(f"{', '.join(map(str, folders))} do not make one encoder: {descriptions}")
    parts = {d.kind: parts_of(folder, d) for folder, d in zip(folders, descriptions, strict=True)}
    changes = next(iter(parts.values()))[1]
    digests = [fingerprint(folder, description) for folder, description in zip(folders, descriptions, strict=True)]
    spec = EncoderSpec(
        name=name,
        dims=_dims(descriptions, {kind: head for kind, (head, _) in parts.items()}),
        query_tokens=first.query_tokens,
        document_tokens=first.document_tokens,
        fingerprint=digest_of("trained", *digests),
    )
    first = _served(first, dense=VectorKind.DENSE in spec.dims)
    frozen = digest_of("tower", weights_digest(folder_of(first.backbone)), first.features)
    adapted_digest = digest_of(frozen, digests[0]) if changes else frozen
    tower = load_backbone(lambda: open_trained_tower(first, changes), adapted_digest, config)
    documents = tower
    if first.adapted == "queries":
        documents = load_backbone(lambda: open_trained_tower(first, {}), frozen, config)
    tokenizer = Tokenizer(folder_of(first.backbone) / "tokenizer.json")
    states = {kind: {n: t.numpy() for n, t in head.items()} for kind, (head, _) in parts.items()}
    sparse = terms = None
    if "sparse" in parts:
        place = kinds.index("sparse")
        sparse = _sparse_graph(descriptions[place], parts["sparse"][0], digests[place], config)
        terms = Terms(parts["sparse"][0]["names"].numpy(), TermConfig(**descriptions[place].head["terms"]))
    power = next((float(d.head.get("pooled_power", 0.0)) for d in descriptions if d.kind == "tokens"), 0.0)
    heads = Heads(states, power, sparse, terms)
    return TrainedEncoder(spec, (tower, documents), tokenizer, heads, config.batch_tokens)


def _served(description: Description, *, dense: bool) -> Description:
    """The description whose tower gives the heads' features and, after them, the last layer for dense vectors."""
    if not dense or description.features[-1:] == ("last",):
        return description
    return replace(description, features=(*description.features, "last"))


def _dims(descriptions: Sequence[Description], heads: dict[str, dict[str, Any]]) -> dict[VectorKind, int]:
    import json

    first = descriptions[0]
    hidden = json.loads((folder_of(first.backbone) / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    dims: dict[VectorKind, int] = {}
    if "dense" in heads or not any(d.adapter_scale for d in descriptions):
        dims[VectorKind.DENSE] = int(hidden)
    if "tokens" in heads:
        dims[VectorKind.TOKENS] = int(heads["tokens"]["project.weight"].shape[0])
    if "sparse" in heads:
        buckets = next(d.head["terms"]["buckets"] for d in descriptions if d.kind == "sparse")
        dims[VectorKind.SPARSE] = len(heads["sparse"]["names"]) + int(buckets)
    return dims


def _sparse_graph(
    description: Description, state: dict[str, torch.Tensor], digest: str, config: DeviceConfig
) -> Backbone:
    def load() -> torch.nn.Module:
        from chamfer.models.networks.heads import SparseHead, SparseHeadConfig

        settings = {name: value for name, value in description.head.items() if name != "terms"}
        vocabulary, dim = state["embeddings"].shape
        head = SparseHead(width, vocabulary, dim, SparseHeadConfig(**settings))
        head.load_state_dict(state)
        return head.eval()

    width = state["transform.weight"].shape[1]
    example = (((2, 8, width), "float32"), ((2, 8), "int64"))
    return load_backbone(load, digest_of("sparse head", digest), config, example)


def _ragged(matrices: Sequence[F32], counts: Sequence[F32], dim: int) -> TokenVectors:
    offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
    np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
    values = np.concatenate([*matrices, np.empty((0, dim), dtype=np.float32)])
    weights = np.concatenate([*counts, np.empty(0, dtype=np.float32)])
    return TokenVectors(values, offsets, weights if len(weights) == len(values) and len(values) else None)


def _sparse(rows: Sequence[tuple[I64, F32]], vocabulary: int) -> SparseVectors:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(terms) for terms, _ in rows], out=offsets[1:])
    terms = np.concatenate([np.empty(0, dtype=np.int64), *(terms for terms, _ in rows)]).astype(np.int32)
    weights = np.concatenate([np.empty(0, dtype=np.float32), *(weights for _, weights in rows)]).astype(np.float32)
    return SparseVectors(weights, terms, offsets, vocabulary)
