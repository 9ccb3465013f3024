"""`chamfer inspect --encoder`: the geometry of an encoder's vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from chamfer.cli import terminal
from chamfer.cli.demo import demo_corpus
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.core.protocols import Encoder
    from chamfer.core.types import Array, Document, Encoding, Query, VectorKind

MAX_VECTORS = 3000


def inspect_encoder(name: str, corpus: str, split: str, sample: int, as_json: bool, config: Path | None) -> None:
    """Prints effective rank, mean cosine and similar measures of document vectors, and alignment on judged queries."""
    from chamfer.indexing.building.corpus import read_corpus
    from chamfer.models.registry import load_encoder
    from chamfer.settings import load_settings

    source = corpus or str(demo_corpus())
    non_empty = [document for document in read_corpus(source) if document.content.strip()]
    drawn = np.random.default_rng(0).choice(len(non_empty), size=min(sample, len(non_empty)), replace=False)
    documents = [non_empty[index] for index in np.sort(drawn)]
    encoder = load_encoder(name, load_settings(config).models.device)
    facts = diagnose(encoder, documents, _relevant_pairs(source, split, documents))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for kind, measures in facts.items():
        meaning = measures.pop("meaning", "")
        rows = [
            [key.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.3f}"]
            for key, value in measures.items()
        ]
        terminal.table(f"{name}: {kind} vectors of {len(documents):,} documents", ["", ""], rows)
        if meaning:
            terminal.data.print(meaning, markup=False)


def diagnose(
    encoder: Encoder, documents: Sequence[Document], pairs: Sequence[tuple[Query, int]]
) -> dict[str, dict[str, Any]]:
    """Measures by kind of vector (dense, tokens). `pairs` are queries, each with the index of a relevant document.

    Raises InvalidInput for an encoder without dense and token vectors, and for fewer than two documents.
    """
    from chamfer.core.types import VectorKind
    from chamfer.models.networks import embedding_diagnostics

    kinds = [kind for kind in (VectorKind.DENSE, VectorKind.TOKENS) if kind in encoder.spec.dims]
    if not kinds or len(documents) < 2:
        raise InvalidInput(
            f"encoder {encoder.spec.name} has the vector kinds {sorted(encoder.spec.dims)} and there are "
            f"{len(documents)} documents; expected dense or tokens, and at least 2 documents"
        )
    document_encoding = encoder.encode_documents(documents, kinds)
    query_encoding = encoder.encode_queries([query for query, _ in pairs], kinds) if pairs else None
    measures: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        values = document_encoding.vectors(kind).values  # type: ignore[union-attr]  # never sparse
        geometry = embedding_diagnostics.geometry(_sampled(embedding_diagnostics.unit_rows(values)))
        measures[kind.value] = asdict(geometry)
        if query_encoding is not None:
            cosines = _pair_cosines(kind, query_encoding, document_encoding, [index for _, index in pairs])
            measures[kind.value]["alignment"] = embedding_diagnostics.alignment(cosines)
        if kind is VectorKind.TOKENS:
            measures[kind.value]["meaning"] = embedding_diagnostics.meaning_for_fde(geometry)
    return measures


def _pair_cosines(kind: VectorKind, queries: Encoding, documents: Encoding, relevant: Sequence[int]) -> Array:
    """Cosine f64 [n] of each query with its relevant document; of token vectors, MaxSim over the query's length."""
    from chamfer.core.types import VectorKind
    from chamfer.models.networks.embedding_diagnostics import unit_rows

    if kind is VectorKind.DENSE:
        assert queries.dense is not None
        assert documents.dense is not None
        products = unit_rows(queries.dense.values) * unit_rows(documents.dense.values)[list(relevant)]
        return np.asarray(products.sum(axis=1, dtype=np.float64))
    assert queries.tokens is not None
    assert documents.tokens is not None
    cosines = []
    for query_row, document_row in enumerate(relevant):
        query = unit_rows(queries.tokens.take([query_row]).values)
        document = unit_rows(documents.tokens.take([document_row]).values)
        cosines.append(float((query @ document.T).max(axis=1).mean()))
    return np.array(cosines)


def _relevant_pairs(source: str, split: str, documents: Sequence[Document]) -> list[tuple[Query, int]]:
    """Queries with the index of a relevant document of the sample; empty if the corpus has no qrels of this split."""
    from chamfer.indexing.building.corpus import read_qrels, read_queries

    folder = Path(source)
    if not (folder / "queries.jsonl").exists() or not (folder / "qrels" / f"{split}.tsv").exists():
        return []
    index = {document.doc_id: number for number, document in enumerate(documents)}
    queries = {query.query_id: query for query in read_queries(folder)}
    return [
        (queries[qrel.query_id], index[qrel.doc_id])
        for qrel in read_qrels(folder, split)
        if qrel.relevance > 0 and qrel.doc_id in index and qrel.query_id in queries
    ][:MAX_VECTORS]


def _sampled(unit: Array) -> Array:
    """At most MAX_VECTORS rows, drawn with a fixed seed."""
    if len(unit) <= MAX_VECTORS:
        return unit
    return unit[np.sort(np.random.default_rng(0).choice(len(unit), MAX_VECTORS, replace=False))]
