"""Trains codecs and measures recall on the first `sample_documents` documents, before a build writes its blocks.

The encodings of the sample are stored beside the blocks, so that a build that is killed during training, or refused by
the recall floor, does not encode them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.artifact import Artifact, digest_of, find_artifact, open_artifact, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder
from chamfer.core.types import (
    AnchorScores,
    Array,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.building.recall_floor import FloorMeasure, approximates_maxsim, refusal, sampled_queries
from chamfer.indexing.collection.config import CollectionConfig
from chamfer.indexing.collection.snapshot import Learnt, add_codecs, read_codecs, read_recall
from chamfer.indexing.families.family import Family
from chamfer.indexing.rows.segment_part import Codec

_KIND = "encoding"
_CODECS = "codecs"
ENCODED = (VectorKind.DENSE, VectorKind.TOKENS, VectorKind.SPARSE)
Encode = Callable[[Sequence[Document]], Encoding | None]


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """A block of sample documents, the digest of the documents and the encoder, and the path of the stored encoding."""

    documents: Sequence[Document]
    digest: str
    path: Path

    def encoding(self) -> Encoding:
        """The encoding, read from disk."""
        return _read_encoding(self.path)


def keep_sample(folder: Path, documents: Sequence[Document], digest: str, encode: Encode) -> SampleBlock:
    """Stores the encoding of a block of the sample in `folder`, unless an earlier build did; returns the block."""
    path = folder / f"encoding-{digest[:40]}"
    if find_artifact(path, _KIND) is None:
        encoding = encode(documents)
        if encoding is None:
            raise InvalidInput("no channel uses an encoder, so there are no encodings to train codecs on")
        body: dict[str, Any] = {"vocabulary": encoding.sparse.vocabulary if encoding.sparse else 0}
        if encoding.anchors is not None:
            body |= {"queries": encoding.anchors.queries, "reranker": encoding.anchors.fingerprint}
        with write_artifact(path, _KIND, body) as writer:
            for name, array in _arrays(encoding):
                writer.add_array(name, array)
    return SampleBlock(documents, digest, path)


def learn(
    folder: Path,
    blocks: Sequence[SampleBlock],
    families: Mapping[str, Family],
    encoder: Encoder | None,
    config: CollectionConfig,
    queries: Sequence[Query],
) -> Learnt:
    """Trains the codecs of a new collection on the sample's blocks and measures recall. Equal inputs give equal bytes.

    Both are stored in `folder`, where a resumed build reads them.
    """
    recipe = [asdict(config)["parameters"], sorted(families), config.floor.depth, config.floor.queries]
    texts = [[query.query_id, query.text] for query in queries]
    path = folder / f"codecs-{digest_of([block.digest for block in blocks], recipe, texts)[:40]}"
    if find_artifact(path, _CODECS) is None:
        encoding = Encoding.concatenate([block.encoding() for block in blocks]) if blocks else None
        codecs = {name: family.learn(encoding) for name, family in families.items()}
        body: dict[str, Any] = {"recall": {}}
        measure = None if encoding is None else _measure(blocks, encoding, families, encoder, config, queries)
        if measure is not None:
            body["recall"] = {
                name: asdict(measure.channel(family, codecs[name]))
                for name, family in families.items()
                if approximates_maxsim(family)
            }
        with write_artifact(path, _CODECS, body) as writer:
            add_codecs(writer, codecs)
    return _read_learnt(open_artifact(path, _CODECS), config)


def check_floor(
    learnt: Learnt,
    blocks: Sequence[SampleBlock],
    families: Mapping[str, Family],
    encoder: Encoder | None,
    config: CollectionConfig,
    queries: Sequence[Query],
    total: int | None,
) -> None:
    """Raises InvalidInput if a channel is below the floor, in the sample or extrapolated to `total` documents.

    Other settings are measured first, and the message lists those that reach a higher recall.
    """
    for name, measured in learnt.recall.items():
        n_documents = max(total or 0, measured.documents)
        if min(measured.recall, measured.at(n_documents)) >= config.floor.recall:
            continue
        encoding = Encoding.concatenate([block.encoding() for block in blocks])
        measure = _measure(blocks, encoding, families, encoder, config, queries)
        parameters = config.parameters.get(name, {})
        alternatives = {} if measure is None else measure.alternatives(families[name].name, parameters)
        raise InvalidInput(refusal(name, measured, config.floor.recall, n_documents, alternatives))


def codec_digest(codecs: Mapping[str, Codec]) -> str:
    """One digest of all codecs."""
    parts = [
        [channel, name, str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for channel, codec in sorted(codecs.items())
        for name, array in sorted(codec.items())
    ]
    return digest_of(parts)


def _measure(
    blocks: Sequence[SampleBlock],
    encoding: Encoding,
    families: Mapping[str, Family],
    encoder: Encoder | None,
    config: CollectionConfig,
    queries: Sequence[Query],
) -> FloorMeasure | None:
    """None if no channel provides MaxSim candidates, or no document contains a word to sample a query from."""
    if (
        encoder is None
        or encoding.tokens is None
        or not any(approximates_maxsim(family) for family in families.values())
    ):
        return None
    documents = [document for block in blocks for document in block.documents]
    chosen = list(queries[: config.floor.queries]) or sampled_queries(documents, config.floor.queries)
    if not chosen:
        return None
    encoded = encoder.encode_queries(chosen, kinds_of(encoding))
    return FloorMeasure(encoding, documents, encoded, not queries, config.floor)


def kinds_of(encoding: Encoding) -> Collection[VectorKind]:
    """The kinds of vectors in an encoding."""
    return [kind for kind in ENCODED if getattr(encoding, kind.value) is not None]


def _read_encoding(path: Path) -> Encoding:
    artifact = open_artifact(path, _KIND)

    def read(kind: str) -> dict[str, Array]:
        return {name: np.array(array) for name, array in artifact.arrays(f"{kind}.").items()}

    dense, tokens, sparse, anchors = read("dense"), read("tokens"), read("sparse"), read("anchors")
    return Encoding(
        np.array(artifact.array("n_tokens")),
        np.array(artifact.array("truncated")),
        dense=DenseVectors(**dense) if dense else None,
        tokens=TokenVectors(**tokens) if tokens else None,
        sparse=SparseVectors(**sparse, vocabulary=int(artifact.body["vocabulary"])) if sparse else None,
        anchors=AnchorScores(DenseVectors(**anchors), tuple(artifact.body["queries"]), artifact.body["reranker"])
        if anchors
        else None,
    )


def _read_learnt(artifact: Artifact, config: CollectionConfig) -> Learnt:
    return Learnt(read_codecs(artifact, config.channels), read_recall(artifact.body))


def _arrays(encoding: Encoding) -> Iterator[tuple[str, Array]]:
    yield "n_tokens", encoding.n_tokens
    yield "truncated", encoding.truncated
    if encoding.dense is not None:
        yield "dense.values", encoding.dense.values
    if encoding.tokens is not None:
        yield "tokens.values", encoding.tokens.values
        yield "tokens.offsets", encoding.tokens.offsets
    if encoding.sparse is not None:
        yield "sparse.weights", encoding.sparse.weights
        yield "sparse.terms", encoding.sparse.terms
        yield "sparse.offsets", encoding.sparse.offsets
    if encoding.anchors is not None:
        yield "anchors.values", encoding.anchors.values.values
