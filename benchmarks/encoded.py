"""Encoded BEIR collections for the late-interaction benchmarks, cached in a folder so that each is encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.evaluation import Qrel
from chamfer.core.types import Array, DenseVectors, Document, Encoding, Query, TokenVectors, VectorKind
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries

KINDS = (VectorKind.DENSE, VectorKind.TOKENS)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """A collection and its judged test queries (all queries if there are no judgements), encoded with `mini`."""

    name: str
    documents: Sequence[Document]
    encoding: Encoding
    queries: Encoding
    query_ids: Sequence[str]
    query_texts: Sequence[str]
    qrels: Sequence[Qrel]


def load(folder: Path, cache: Path, most_queries: int) -> EncodedSet:
    """Loads the collection in `folder` and its first `most_queries` queries, encoded unless `cache` holds NAME.npz."""
    documents, queries = list(read_corpus(str(folder))), list(read_queries(folder))
    path = cache / f"{folder.resolve().name}.npz"
    if not path.exists():
        _encode(documents, queries, path)
    with np.load(path) as arrays:
        encoding = _encoding(arrays["dense"], arrays["tokens"], arrays["offsets"])
        query_encoding = _encoding(arrays["q_dense"], arrays["q_tokens"], arrays["q_offsets"])
        ids = arrays["query_ids"].tolist()
    qrels = read_qrels(folder, "test")
    judged_ids = {qrel.query_id for qrel in qrels} or set(ids)
    rows = [row for row, query_id in enumerate(ids) if query_id in judged_ids][:most_queries]
    texts = {query.query_id: query.text for query in queries}
    return EncodedSet(
        path.stem,
        documents,
        encoding,
        _take(query_encoding, rows),
        [ids[row] for row in rows],
        [texts[ids[row]] for row in rows],
        [qrel for qrel in qrels if qrel.query_id in {ids[row] for row in rows}],
    )


def _take(encoding: Encoding, rows: Sequence[int]) -> Encoding:
    if encoding.dense is None or encoding.tokens is None:
        raise TypeError("the encoding lacks dense or token vectors; expected both")
    tokens = encoding.tokens.take(rows)
    return _encoding(encoding.dense.take(rows).values, tokens.values, tokens.offsets)


def _encoding(dense: Array, tokens: Array, offsets: Array) -> Encoding:
    n = len(offsets) - 1
    return Encoding(
        np.diff(offsets).astype(np.int32),
        np.zeros(n, dtype=bool),
        dense=DenseVectors(dense),
        tokens=TokenVectors(tokens, offsets),
    )


def _encode(documents: Sequence[Document], queries: Sequence[Query], path: Path) -> None:
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    encoder = load_encoder("mini", DeviceConfig())
    document_encoding = encoder.encode_documents(documents, KINDS)
    query_encoding = encoder.encode_queries(queries, KINDS)
    arrays: dict[str, Any] = {}
    for side, encoding, dtype in (("", document_encoding, np.float16), ("q_", query_encoding, np.float32)):
        dense, tokens = encoding.dense, encoding.tokens
        if dense is None or tokens is None:
            raise TypeError("the encoder returned no dense or no token vectors; expected both")
        arrays |= {f"{side}dense": dense.values, f"{side}tokens": tokens.values.astype(dtype)}
        arrays[f"{side}offsets"] = tokens.offsets
    path.parent.mkdir(parents=True, exist_ok=True)
    query_ids = np.array([query.query_id for query in queries])
    np.savez(path, doc_ids=np.array([d.doc_id for d in documents]), query_ids=query_ids, **arrays)
