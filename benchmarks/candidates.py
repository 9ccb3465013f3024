"""Candidates that each source needs to hold the exact MaxSim top 10, and nDCG@10 and bytes of each vector storage.

    python -m benchmarks.candidates [FOLDER ...] [--encoded DIR] [--queries N] [--quick] [--json]

FOLDER is a BEIR collection; the shipped one is used if none is named. Encodings are cached in --encoded. The exact
ranking is that of MaxSim over all token vectors in float16. Candidates of a source are counted in its own order; a
union takes equally many from each of its sources. --quick takes 120 documents and 40 queries to check that the program
runs; its figures mean nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.encoded import EncodedSet, load
from benchmarks.harness import Row, demo_corpus, emit, excerpt, parser
from chamfer.core.evaluation import ScoredDoc, evaluate
from chamfer.core.types import Array, Candidates, Document, Encoding, TokenVectors, VectorKind
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.planning.candidate_recall import (
    TARGETS,
    needed,
    rank_by_maxsim,
    ranks_of_best,
    ranks_of_union,
    recall,
)
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.networks.token_pooling import parse_pooling, pool

DEEPEST = 2000
FDES = {1280: (3, 8), 2560: (4, 8), 5120: (5, 8), 10240: (5, 16)}
CENTROIDS = (4096, 8192)
UNIONS = (
    ("dense", "lexical"),
    ("dense", "centroids 4096"),
    ("dense", "fde 10240"),
    ("dense", "centroids 8192"),
    ("dense", "lexical", "centroids 4096"),
)
CODES: Mapping[str, Mapping[str, Any]] = {
    "float16": {},
    "int8": {"storage": "int8"},
    "int4": {"storage": "int4"},
    "int4, 4096 centroids": {"storage": "int4", "centroids": 4096},
    "int3": {"storage": "int3"},
    "int3, 4096 centroids": {"storage": "int3", "centroids": 4096},
    "int2": {"storage": "int2"},
    "int2, 4096 centroids": {"storage": "int2", "centroids": 4096},
}
POOLINGS = (
    *("c8x32", "c8x32n", "w8x32", "w4x8", "c0x32", "c0x32n", "w0x32", "w0x64", "w0x50p", "w0x75p", "w0x90p"),
    *("c25", "c50", "w25", "w50", "k6", "tail8x32"),
)
POOLED_CODES = ("float16", "int8", "int4")
FLOAT_BYTES = 4
REFINED = 800  # candidates by centroids that are reordered by their codes
SAMPLE = 2048  # documents that a build learns codecs from by default


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--encoded", type=Path)
    arguments.add_argument("--queries", type=int, default=300, help="maximum number of queries of each collection")
    arguments.add_argument("--only", choices=["sources", "storage"])
    arguments.add_argument("--poolings", nargs="*", default=POOLINGS, help="poolings whose storage is measured")
    options = arguments.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work, threadpool_limits(1):
        for folder in options.folders or [demo_corpus()]:
            source = excerpt(folder, Path(work), 120) if options.quick else folder
            encoded = load(source, options.encoded or Path(work), 40 if options.quick else options.queries)
            exact = exact_order(encoded)
            if options.only != "storage":
                rows += sources(encoded, exact)
            if options.only != "sources":
                rows += storage(encoded, exact, options.poolings)
    emit(rows, options.json)


def exact_order(encoded: EncodedSet) -> Candidates:
    """All documents of every query, ranked by exact MaxSim."""
    retriever, _ = opened(encoded.documents, "multivector", {}, encoded.encoding)
    return rank_by_maxsim(retriever, encoded.queries.tokens)  # type: ignore[arg-type]


def sources(encoded: EncodedSet, exact: Candidates) -> list[Row]:
    """Candidates needed to hold 90, 95 and 99 % of the exact top 10, and the share held by the first 100 and 200."""
    depth = min(DEEPEST, len(encoded.documents))
    candidates_by_source: dict[str, Candidates] = {}
    dense, _ = opened(encoded.documents, "dense", {}, encoded.encoding)
    candidates_by_source["dense"] = dense.search(encoded.queries.dense, depth)
    lexical, _ = opened(encoded.documents, "lexical", {}, encoded.encoding)
    candidates_by_source["lexical"] = lexical.search(lexical.encode_queries(encoded.query_texts), depth)
    for dims, (k_sim, d_proj) in FDES.items():
        fde, _ = opened(encoded.documents, "fde", {"k_sim": k_sim, "d_proj": d_proj}, encoded.encoding)
        candidates_by_source[f"fde {dims}"] = fde.search(encoded.queries.tokens, depth)
    for k in CENTROIDS:
        coded, _ = opened(encoded.documents, "multivector", {"storage": "int2", "centroids": k}, encoded.encoding)
        candidates_by_source[f"centroids {k}"] = coded.centroid_candidates(encoded.queries.tokens, depth)
        refined = coded.with_params(candidates=REFINED)
        candidates_by_source[f"{REFINED} by centroids {k}, then int2"] = refined.search(encoded.queries.tokens, 200)
    for name in ("w0x8", "w0x32"):
        pooled, _ = opened(encoded.documents, "multivector", {}, pooled_by(encoded.encoding, name, "document"))
        candidates_by_source[name] = pooled.search(encoded.queries.tokens, depth)
    ranks = {name: ranks_of_best(candidates, exact, 10) for name, candidates in candidates_by_source.items()}
    ranks |= {" + ".join(parts): ranks_of_union([ranks[part] for part in parts]) for parts in UNIONS}
    rows = []
    for name, source_ranks in ranks.items():
        title = f"{encoded.name} {name}"
        for target in TARGETS:
            count = needed(source_ranks, target)
            rows.append(Row(f"{title}: candidates for {target:.2f}", np.nan if count is None else count, "documents"))
        rows += [Row(f"{title}: recall in {depth}", recall(source_ranks, depth), "share") for depth in (100, 200)]
    return rows


def storage(encoded: EncodedSet, exact: Candidates, poolings: Sequence[str] = POOLINGS) -> list[Row]:
    """nDCG@10 and bytes per document (of everything that the channel stores) of every pooling and every code.

    Codes rerank the exact top 200, pooled vectors the exact top 1,000. A ratio is the share of float16's nDCG@10, or of
    float32's bytes.
    """
    figures: list[Row] = []
    plain = 0.0
    token_vectors = _tokens(encoded.encoding)
    float32_bytes = token_vectors.values.size * FLOAT_BYTES / len(token_vectors)
    for pooling in ("", *poolings):
        documents, queries, rows = encoded.encoding, encoded.queries, exact.rows[:, :200]
        if pooling:
            documents, queries = pooled_by(documents, pooling, "document"), pooled_by(queries, pooling, "query")
            rows = exact.rows[:, :1000]
        for code in POOLED_CODES if pooling else CODES:
            retriever, n_bytes = opened(encoded.documents, "multivector", CODES[code], documents)
            scores = retriever.score(queries.tokens, rows)
            top = np.stack(
                [
                    query_rows[np.lexsort((query_rows, -query_scores))[:10]]
                    for query_rows, query_scores in zip(rows, scores, strict=True)
                ]
            )
            quality = ndcg(encoded, top)
            plain = plain or quality
            kept_shares = [
                np.isin(best, query_rows[:10]).mean() for best, query_rows in zip(top, exact.rows, strict=True)
            ]
            title = f"{encoded.name} {code} {pooling}".rstrip()
            size = n_bytes / len(encoded.documents)
            figures += [
                Row(f"{title}: nDCG@10", quality, "nDCG@10", "float16", quality / plain),
                Row(f"{title}: exact top 10 kept", float(np.mean(kept_shares)), "share"),
                Row(f"{title}: bytes a document", size, "B", "float32", size / float32_bytes),
            ]
    return figures


def ndcg(encoded: EncodedSet, top: Array) -> float:
    """nDCG@10 of rows i64 [Q, 10], best first."""
    ids = [document.doc_id for document in encoded.documents]
    run = [
        ScoredDoc(query_id, ids[row], float(-rank))
        for query_id, query_rows in zip(encoded.query_ids, top, strict=True)
        for rank, row in enumerate(query_rows)
        if row >= 0
    ]
    return evaluate(run, encoded.qrels, ["nDCG@10"]).means["nDCG@10"]


def opened(
    documents: Sequence[Document], family: str, params: Mapping[str, Any], encoding: Encoding
) -> tuple[Any, int]:
    """(a retriever over one segment with all documents, the bytes of its arrays)."""
    plain = make_family(family, params)
    ready = plain.with_codec(plain.learn(first_block(encoding)))
    arrays = ready.pack(documents, encoding)
    retriever = ready.open([SegmentPart(arrays, None, len(documents))])
    return retriever, sum(array.nbytes for array in arrays.values())


def first_block(encoding: Encoding) -> Encoding:
    """The first SAMPLE documents, from which a build learns its codecs."""
    tokens = encoding.vectors(VectorKind.TOKENS).take(range(min(SAMPLE, len(encoding))))
    return replace(encoding, tokens=tokens)  # type: ignore[arg-type]


def pooled_by(encoding: Encoding, name: str, side: str) -> Encoding:
    """The encoding with its token vectors pooled by the rule that the pooling `name` has for `side`."""
    rules = parse_pooling(name)
    return replace(encoding, tokens=pool(_tokens(encoding), getattr(rules, side), normalised=rules.normalised))


def _tokens(encoding: Encoding) -> TokenVectors:
    if encoding.tokens is None:
        raise TypeError("the encoding holds no token vectors; expected some")
    return encoding.tokens


def plot(axes: Any, rows: list[Row]) -> bool:
    """Share of nDCG@10 against share of bytes: a point per storage, a line through the best ones of each collection."""
    points: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        title, _, what = row.what.partition(": ")
        if row.ratio is not None and what in ("nDCG@10", "bytes a document"):
            points.setdefault(title.partition(" ")[0], {}).setdefault(title, {})[what] = row.ratio
    for number, (name, storages) in enumerate(points.items()):
        coordinates = sorted(
            (shares["bytes a document"], shares["nDCG@10"]) for shares in storages.values() if len(shares) > 1
        )
        axes.scatter(*zip(*coordinates, strict=True), s=12, color=f"C{number}", alpha=0.6)
        best = [(x, y) for x, y in coordinates if y >= max(other for size, other in coordinates if size <= x)]
        axes.plot(*zip(*best, strict=True), color=f"C{number}", linewidth=1, label=name)
    axes.axvline(1 / 8, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0.995, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0.85, 1.06)
    axes.set_xlabel("share of float32's bytes (dotted: an eighth)")
    axes.set_ylabel("share of nDCG@10 (dotted: 0.995)")
    axes.legend(fontsize=8)
    return bool(points)


if __name__ == "__main__":
    main()
