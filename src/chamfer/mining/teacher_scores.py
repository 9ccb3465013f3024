"""Scores a file of pairs with a reranker, in blocks that survive an interruption; each distinct pair is scored once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chamfer.core.artifact import (
    digest_of,
    discard_temporaries,
    find_artifact,
    open_artifact,
    remove_directory,
    write_artifact,
)
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Pair, Reranker
from chamfer.core.types import F32, Document, Query
from chamfer.mining.features import PairScorer, pair_scorer
from chamfer.models.training.data.groups import read_documents, read_images
from chamfer.models.training.data.parquet import float_lists, read_table, write_table

CACHE_BYTES = 64 << 20
Pairs = list[Pair]


def judge_file(
    source: Path,
    out: Path,
    reranker: Reranker,
    *,
    column: str = "judge",
    block: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes `source` with the reranker's scores as an additional column; returns the number of pairs.

    `source` has either one pair per row (query, text, optionally image and query_image as paths) or one group per row
    (query, doc_ids, with the texts in the .documents.parquet beside it). Logits become probabilities; NaN marks a pair
    that could not be scored. After an interruption, a second call resumes at the first missing block of rows.

    Raises InvalidInput for rows without text and image, and for groups whose documents are missing.
    """
    table = read_table(source, ("query",))
    grouped = "doc_ids" in table.column_names
    documents = _documents_beside(source) if grouped else {}
    score_pairs = pair_scorer(reranker, CACHE_BYTES)
    folder = out.with_name(f".{out.name}.blocks")
    discard_temporaries(folder)
    scores: list[F32] = []
    lengths: list[int] = []
    for number, start in enumerate(range(0, table.num_rows, block)):
        rows = table.slice(start, block).to_pylist()
        row_pairs = [
            _group(row, documents, source.parent) if grouped else [_pair(row, start + i)] for i, row in enumerate(rows)
        ]
        lengths += [len(pairs) for pairs in row_pairs]
        block_pairs = [pair for pairs in row_pairs for pair in pairs]
        path = folder / f"{number:06d}-{_identity(reranker, block_pairs)}"
        scores.append(_scored(path, block_pairs, score_pairs))
        if progress is not None:
            progress(start + len(rows), table.num_rows)
    flat = np.concatenate([np.empty(0, dtype=np.float32), *scores])
    parts = np.split(flat, np.cumsum(lengths)[:-1]) if lengths else []
    values = float_lists(parts) if grouped else pa.array(flat, pa.float32())
    if column in table.column_names:
        table = table.drop_columns([column])
    write_table(out, table.append_column(column, values))
    remove_directory(folder)
    return len(flat)


def _identity(reranker: Reranker, pairs: Pairs) -> str:
    contents = [[q.text, str(q.image), d.content, str(d.image)] for q, d in pairs]
    return digest_of(reranker.fingerprint, contents)[:40]


def _scored(path: Path, pairs: Pairs, score_pairs: PairScorer) -> F32:
    """The scores stored at `path`; computed and stored first if there are none."""
    if find_artifact(path, "judged-block") is None:
        with write_artifact(path, "judged-block", {}) as writer:
            writer.add_array("scores", score_pairs(pairs))
    return np.array(open_artifact(path, "judged-block").array("scores"))


def _documents_beside(source: Path) -> dict[str, Document]:
    stem = source.name.removesuffix(".parquet").removesuffix(".groups")
    path = source.with_name(f"{stem}.documents.parquet")
    images = read_images(path)
    return {i: Document(i, text, image=images.get(i)) for i, text in read_documents(path).items()}


def _group(row: dict[str, Any], documents: dict[str, Document], folder: Path) -> Pairs:
    image = row.get("query_image")
    query = Query(str(row.get("query_id", "")), row["query"], folder / image if isinstance(image, str) else image)
    if missing := [doc_id for doc_id in row["doc_ids"] if doc_id not in documents]:
        raise InvalidInput(f"document {missing[0]!r} of query {row['query']!r} is not in the documents file")
    return [(query, documents[doc_id]) for doc_id in row["doc_ids"]]


def _pair(row: dict[str, Any], number: int) -> tuple[Query, Document]:
    if row.get("text") is None and row.get("image") is None:
        raise InvalidInput(f"row {number} has neither text nor image; expected the columns query and text (or image)")
    query_image, image = (Path(row[name]) if row.get(name) else None for name in ("query_image", "image"))
    query = Query(str(row.get("query_id", row["query"])), row["query"] or "", query_image)
    return query, Document(str(row.get("doc_id", number)), row.get("text") or "", image=image)
