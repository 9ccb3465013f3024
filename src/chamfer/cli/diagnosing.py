"""`chamfer inspect --encoder`: the geometry of what an encoder gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from chamfer.cli import printing
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.core.protocols import Encoder
    from chamfer.core.types import Array, Document, Query

DEMO = Path(__file__).resolve().parents[1] / "demo" / "fairytaleqa"
MOST_VECTORS = 3000


def inspect_encoder(name: str, corpus: str, split: str, sample: int, as_json: bool, config: Path | None) -> None:
    """Prints effective rank, mean cosine and the rest for document vectors, and alignment with judged queries."""
    from chamfer.indexing.build.corpus import read_corpus
    from chamfer.models.registry import load_encoder
    from chamfer.settings import load_settings

    source = corpus or str(DEMO)
    every = [document for document in read_corpus(source) if document.content.strip()]
    chosen = np.random.default_rng(0).choice(len(every), size=min(sample, len(every)), replace=False)
    documents = [every[place] for place in np.sort(chosen)]
    encoder = load_encoder(name, load_settings(config).models.device)
    facts = diagnose(encoder, documents, _judged(source, split, documents))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for kind, found in facts.items():
        meaning = found.pop("meaning", "")
        rows = [
            [key.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.3f}"]
            for key, value in found.items()
        ]
        printing.table(f"{name}: {kind} vectors of {len(documents):,} documents", ["", ""], rows)
        if meaning:
            printing.data.print(meaning, markup=False)


def diagnose(
    encoder: Encoder, documents: Sequence[Document], pairs: Sequence[tuple[Query, int]]
) -> dict[str, dict[str, Any]]:
    """Measures by kind of vector (dense, tokens); `pairs` are queries with the place of a relevant document."""
    from chamfer.core.types import VectorKind
    from chamfer.models.networks import embedding_diagnostics as diagnostics

    kinds = [kind for kind in (VectorKind.DENSE, VectorKind.TOKENS) if kind in encoder.spec.dims]
    if not kinds or len(documents) < 2:
        raise InvalidInput(
            f"encoder {encoder.spec.name} gives {sorted(encoder.spec.dims)} for {len(documents)} documents"
        )
    own = encoder.encode_documents(documents, kinds)
    asked = encoder.encode_queries([query for query, _ in pairs], kinds) if pairs else None
    out: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        values = own.vectors(kind).values  # type: ignore[union-attr]  # sparse was not asked for
        found = diagnostics.geometry(_sampled(diagnostics.unit_rows(values)))
        out[kind.value] = asdict(found)
        if asked is not None:
            cosines = _pair_cosines(kind, asked, own, [place for _, place in pairs])
            out[kind.value]["alignment"] = diagnostics.alignment(cosines)
        if kind is VectorKind.TOKENS:
            out[kind.value]["meaning"] = diagnostics.meaning_for_fde(found)
    return out


def _pair_cosines(kind: Any, asked: Any, own: Any, places: Sequence[int]) -> Array:
    """Cosine of each pair; of token vectors the mean over query tokens of the best (MaxSim by the query's length)."""
    from chamfer.core.types import VectorKind
    from chamfer.models.networks.embedding_diagnostics import unit_rows

    if kind is VectorKind.DENSE:
        queries, documents = (unit_rows(e.dense.values) for e in (asked, own))
        return np.asarray((queries * documents[list(places)]).sum(axis=1, dtype=np.float64))
    out = []
    for number, place in enumerate(places):
        query, document = (unit_rows(e.tokens.take([row]).values) for e, row in ((asked, number), (own, place)))
        out.append(float((query @ document.T).max(axis=1).mean()))
    return np.array(out)


def _judged(source: str, split: str, documents: Sequence[Document]) -> list[tuple[Query, int]]:
    """Judged queries whose relevant document is in the sample; none where the corpus has no queries."""
    from chamfer.indexing.build.corpus import read_qrels, read_queries

    folder = Path(source)
    if not (folder / "queries.jsonl").exists() or not (folder / "qrels" / f"{split}.tsv").exists():
        return []
    place = {document.doc_id: number for number, document in enumerate(documents)}
    queries = {query.query_id: query for query in read_queries(folder)}
    return [
        (queries[qrel.query_id], place[qrel.doc_id])
        for qrel in read_qrels(folder, split)
        if qrel.relevance > 0 and qrel.doc_id in place and qrel.query_id in queries
    ][:MOST_VECTORS]


def _sampled(unit: Any) -> Any:
    """At most MOST_VECTORS rows, drawn once and always the same."""
    if len(unit) <= MOST_VECTORS:
        return unit
    return unit[np.sort(np.random.default_rng(0).choice(len(unit), MOST_VECTORS, replace=False))]
