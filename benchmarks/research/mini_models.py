"""The `mini` models compared with untrained baselines: nDCG@10 on held-out tests and on sets never trained on.

    python -m benchmarks.research.mini_models FOLDER ... [--queries 300] [--keep DIR] [--parts late,sparse,cross,fde]

Measured per set and as the mean over the sets: BM25, dense, and their fusion as in the preset `balanced`; exact MaxSim
over raw 384-dimensional token vectors, over the untrained projection and over the trained head, each at every pooling
(untrained vectors also post hoc, by k-means and by Ward clustering); mini-sparse; and the cross-encoder over the top 50
of the fusion, alone and interpolated with it. p is that of a paired test against the peer.

Below the table are the mean differences from the baselines that the models must beat, with the 95 % interval of a
bootstrap over queries, and the number of candidates that FDE of raw, untrained and trained vectors needs to hold 95 %
of the exact MaxSim top 10 over the same vectors. --queries limits the judged queries of a set, chosen by the hash of
their ids. --keep stores document vectors and pair scores between runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates import DEEPEST, FDES, opened
from benchmarks.harness import Row, demo_corpus, emit, parser
from benchmarks.late import encoding_of
from benchmarks.research.cached_encodings import MEASURE, JudgedSet, encoded, read
from chamfer.core.evaluation import significance
from chamfer.core.types import (
    Array,
    Candidates,
    DenseVectors,
    Encoding,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.families.inverted.bm25 import LexicalConfig, LexicalFamily
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.kernels.topk import as_candidates, best
from chamfer.indexing.planning.candidate_recall import needed, rank_by_maxsim, ranks_of_best
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.projection import load_projection
from chamfer.models.networks.token_pooling import parse_pooling, pool
from chamfer.models.registry import load_reranker
from chamfer.service.search.fusion import blend, interpolate
from chamfer.service.search.presets import FIRST_STAGE_WEIGHTS

POOLINGS = ("", "w0x32", "w8x32", "w4x8", "w25")
POST_HOC = ("c0x32n", "c8x32n", "c4x8n")
MINUS, RESAMPLED = " minus ", 2000
ENCODINGS = (10_240, 2560)
TARGET_RECALL, CANDIDATES = 0.95, "candidates"
FEW_VECTORS = "w0x32"
DEPTH = 100
RERANKED = 50
SHARE = 0.5
DIFFERENCES = (  # (model, baseline that it must beat)
    *((f"mini-late {name or 'all'}", "MaxSim raw 384") for name in ("", "w0x32", "w8x32")),
    ("mini-sparse", "BM25"),
    (f"mini-cross {SHARE} + hybrid", "hybrid"),
)


@dataclass(frozen=True, slots=True)
class Systems:
    """`values`: nDCG@10 by system and query. `peers`: the system with which each one is compared."""

    values: Mapping[str, Mapping[str, float]]
    peers: Mapping[str, str]


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--queries", type=int, default=0)
    arguments.add_argument("--keep", type=Path)
    arguments.add_argument("--parts", default="late,sparse,cross,fde")
    options = arguments.parse_args()
    limit = 10 if options.quick else options.queries
    systems_by_set: dict[str, Systems] = {}
    encodings: list[Row] = []
    for folder in options.folders or [demo_corpus()]:
        collection = read(folder, limit, 300 if options.quick else 0)
        name = f"{collection.name} ({len(collection.queries)})"
        parts = options.parts.split(",")
        systems_by_set[name] = measured(collection, options.keep, parts)
        encodings += fde_candidates(name, collection, options.keep) if "fde" in parts else []
    rows = [row for name, systems in systems_by_set.items() for row in _rows(name, systems)]
    sets = list(systems_by_set.values())
    emit(rows + (_means(sets) + differences(sets) if len(systems_by_set) > 1 else []) + encodings, options.json)


def measured(collection: JudgedSet, keep: Path | None, parts: Sequence[str]) -> Systems:
    """nDCG@10 by query of all systems on one set, and their peers."""
    raw, query_encoding = encoded(collection, "mini-384", (VectorKind.DENSE, VectorKind.TOKENS), keep)
    assert raw.dense is not None
    assert query_encoding.dense is not None
    runs = {"BM25": _bm25(collection), "dense": _dense(query_encoding.dense, raw.dense)}
    channels = {"lexical": runs["BM25"], "dense": runs["dense"]}
    runs["hybrid"] = interpolate(channels, {name: FIRST_STAGE_WEIGHTS[name] for name in channels}).candidates
    peers: dict[str, str] = {}
    if "late" in parts:
        late, peers = _late(collection, raw, query_encoding, keep)
        runs |= late
    if "sparse" in parts:
        runs["mini-sparse"], peers["mini-sparse"] = _sparse(collection, keep), "BM25"
    if "cross" in parts:
        runs |= _cross(collection, runs["hybrid"], keep)
        peers |= {"mini-cross alone": "hybrid", f"mini-cross {SHARE} + hybrid": "hybrid"}
    return Systems({name: collection.values(run) for name, run in runs.items()}, peers)


def fde_candidates(name: str, collection: JudgedSet, keep: Path | None) -> list[Row]:
    """The number of FDE candidates that hold 95 % of the exact MaxSim top 10, for each kind of token vectors."""
    raw, query_encoding = encoded(collection, "mini-384", (VectorKind.DENSE, VectorKind.TOKENS), keep)
    trained, trained_queries = encoded(collection, "mini-late", (VectorKind.TOKENS,), keep)
    projection, _ = load_projection()
    sides = [
        [side_encoding.tokens for side_encoding in pair] for pair in ((query_encoding, raw), (trained_queries, trained))
    ]
    vectors: dict[str, list[Any]] = {"raw 384": sides[0], "mini-late": sides[1]}
    vectors["untrained 128"] = [_projected(tokens, projection) for tokens in vectors["raw 384"]]
    for kind in ("untrained 128", "mini-late"):
        rules = parse_pooling(FEW_VECTORS)
        queries, documents = vectors[kind]
        vectors[f"{kind} {FEW_VECTORS}"] = [queries, pool(documents, rules.document, normalised=rules.normalised)]
    rows = []
    for kind, (queries, documents) in vectors.items():
        encoding = encoding_of(documents)
        plain, _ = opened(collection.documents, "multivector", {}, encoding)
        exact = rank_by_maxsim(plain, queries)
        for dims in ENCODINGS:
            k_sim, d_proj = FDES[dims]
            fde, _ = opened(collection.documents, "fde", {"k_sim": k_sim, "d_proj": d_proj}, encoding)
            nearest = fde.search(queries, min(len(documents), DEEPEST))
            count = needed(ranks_of_best(nearest, exact, 10), TARGET_RECALL)
            what = f"FDE {dims:,} of {kind}, {name}: candidates for {TARGET_RECALL:.0%} of its exact top 10"
            rows.append(Row(what, np.nan if count is None else count, CANDIDATES))
    return rows


def _rows(name: str, systems: Systems) -> list[Row]:
    rows = []
    for system, values in systems.values.items():
        peer = systems.peers.get(system, "")
        other = systems.values.get(peer)
        p = "" if other is None else f" [p {significance(values, other):.3f}]"
        ratio = None if other is None else _mean(values) / _mean(other)
        rows.append(Row(f"{name}: {system}{p}", _mean(values), MEASURE, peer, ratio))
    return rows


def _means(sets: Sequence[Systems]) -> list[Row]:
    """The mean of every system over the sets, each with the same weight."""
    means = {name: float(np.mean([_mean(s.values[name]) for s in sets])) for name in sets[0].values}
    peers = sets[0].peers
    ratios = {name: value / means[peers[name]] if name in peers else None for name, value in means.items()}
    return [Row(f"all: {name}", value, MEASURE, peers.get(name, ""), ratios[name]) for name, value in means.items()]


def differences(sets: Sequence[Systems]) -> list[Row]:
    """Mean differences of nDCG@10 over equally weighted sets, with a percentile bootstrap over queries."""
    rng = np.random.default_rng(0)
    rows = []
    for ours, other in DIFFERENCES:
        if ours not in sets[0].values or other not in sets[0].values:
            continue
        total, resampled = 0.0, np.zeros(RESAMPLED)
        for systems in sets:
            gains = np.array([value - systems.values[other][query] for query, value in systems.values[ours].items()])
            total += gains.mean() / len(sets)
            resampled += gains[rng.integers(len(gains), size=(RESAMPLED, len(gains)))].mean(axis=1) / len(sets)
        low, high = np.quantile(resampled, (0.025, 0.975))
        rows.append(Row(f"{ours}{MINUS}{other} [{low:+.4f} to {high:+.4f}]", total, MEASURE))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line per system, a column per set; p below 0.05 of the difference from the peer follows the value."""
    further = [f"- {row.what}: {row.value:+.4f}" for row in rows if MINUS in row.what]
    further += _fde_table([row for row in rows if row.unit == CANDIDATES])
    rows = [row for row in rows if MINUS not in row.what and row.unit == MEASURE]
    cells: dict[str, dict[str, str]] = {}
    peers: dict[str, str] = {}
    for row in rows:
        name, _, what = row.what.partition(": ")
        system, _, p = what.removesuffix("]").partition(" [p ")
        shown = f" ({'+' if (row.ratio or 1) > 1 else '-'}, p {p})" if p and float(p) < 0.05 else ""
        cells.setdefault(system, {})[name] = f"{row.value:.4f}{shown}"
        peers[system] = row.peer
    names = list(dict.fromkeys(row.what.partition(": ")[0] for row in rows))
    lines = [f"| {MEASURE} | peer | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for system, values in cells.items():
        lines.append(f"| {system} | {peers[system]} | {' | '.join(values.get(name, '') for name in names)} |")
    return "\n".join([*lines, "", *further, ""])


def _fde_table(rows: Sequence[Row]) -> list[str]:
    """A line per kind of vectors, a column per set."""
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        kind, _, name = row.what.partition(": ")[0].partition(", ")
        cells.setdefault(kind, {})[name] = row.value
    names = list(dict.fromkeys(name for values in cells.values() for name in values))
    title = rows[0].what.partition(": ")[2] if rows else ""
    lines = ["", f"| {title} | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)] if rows else []
    return lines + [f"| {kind} | {' | '.join(f'{values[n]:.0f}' for n in names)} |" for kind, values in cells.items()]


def plot(axes: Any, rows: list[Row]) -> bool:
    """The mean gain of training over the sets."""
    from benchmarks.report import plot_ratios

    return plot_ratios(axes, [row for row in rows if row.what.startswith("all: ")])


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def _late(
    collection: JudgedSet, raw: Encoding, queries: Encoding, keep: Path | None
) -> tuple[dict[str, Candidates], dict[str, str]]:
    """(MaxSim runs by system, the peer of each trained system)."""
    assert raw.tokens is not None
    assert queries.tokens is not None
    trained, trained_queries = encoded(collection, "mini-late", (VectorKind.TOKENS,), keep)
    assert trained.tokens is not None
    assert trained_queries.tokens is not None
    projection, _ = load_projection()
    runs = {"MaxSim raw 384": _maxsim(collection, queries.tokens, raw.tokens)}
    peers = {}
    untrained = [_projected(tokens, projection) for tokens in (queries.tokens, raw.tokens)]
    for name in (*POST_HOC, *POOLINGS):
        label = name or "all"
        runs[f"untrained 128 {label}"] = _pooled_maxsim(collection, untrained[0], untrained[1], name)
        if name in POST_HOC:
            continue
        runs[f"mini-late {label}"] = _pooled_maxsim(collection, trained_queries.tokens, trained.tokens, name)
        peers[f"mini-late {label}"] = f"untrained 128 {label}"
    return runs, peers


def _pooled_maxsim(collection: JudgedSet, queries: TokenVectors, documents: TokenVectors, name: str) -> Candidates:
    if not name:
        return _maxsim(collection, queries, documents)
    rules = parse_pooling(name)
    sides = ((queries, rules.query), (documents, rules.document))
    return _maxsim(collection, *(pool(vectors, rule, normalised=rules.normalised) for vectors, rule in sides))


def _maxsim(collection: JudgedSet, queries: TokenVectors, documents: TokenVectors) -> Candidates:
    family = MultivectorFamily(MultivectorConfig())
    packed = family.pack(collection.documents, encoding_of(documents))
    return family.open([SegmentPart(packed, None, len(documents))]).search(queries, DEPTH)


def _projected(tokens: TokenVectors, projection: np.ndarray) -> TokenVectors:
    values = tokens.values.astype(np.float32) @ projection
    return TokenVectors(values / np.linalg.norm(values, axis=1, keepdims=True), tokens.offsets)


def _bm25(collection: JudgedSet) -> Candidates:
    family = LexicalFamily(LexicalConfig())
    packed = family.pack(collection.documents, None)
    retriever = family.open([SegmentPart(packed, None, len(collection.documents))])
    return retriever.search(retriever.encode_queries([query.text for query in collection.queries]), DEPTH)


def _dense(queries: DenseVectors, documents: DenseVectors) -> Candidates:
    return _ranked((query @ documents.values.T for query in queries.values), DEPTH)


def _sparse(collection: JudgedSet, keep: Path | None) -> Candidates:
    documents, queries = encoded(collection, "mini-sparse", (VectorKind.SPARSE,), keep)
    assert documents.sparse is not None
    assert queries.sparse is not None
    document_matrix, query_matrix = _matrix(documents.sparse), _matrix(queries.sparse)
    return _ranked(
        (np.asarray((document_matrix @ query_matrix[row].T).todense()).ravel() for row in range(query_matrix.shape[0])),
        DEPTH,
    )


def _cross(collection: JudgedSet, hybrid: Candidates, keep: Path | None) -> dict[str, Candidates]:
    first_stage = [hybrid.of(number) for number in range(len(collection.queries))]
    candidates = [(rows[:RERANKED], scores[:RERANKED]) for rows, scores in first_stage]
    alone: list[tuple[Array, Array]] = []
    blended: list[tuple[Array, Array]] = []
    for (rows, earlier), scores in zip(candidates, _scored(collection, [c[0] for c in candidates], keep), strict=True):
        for ranking, query_scores in ((alone, scores), (blended, blend(SHARE, scores, earlier))):
            order = np.argsort(-query_scores, kind="stable")
            ranking.append((rows[order], query_scores[order]))
    return {
        "mini-cross alone": as_candidates(alone, RERANKED),
        f"mini-cross {SHARE} + hybrid": as_candidates(blended, RERANKED),
    }


def _scored(collection: JudgedSet, candidates: Sequence[Array], keep: Path | None) -> list[Array]:
    """The cross-encoder's scores of the rows of each query; scores stored under its fingerprint are reused."""
    reranker = load_reranker("mini-cross", DeviceConfig())
    path = None if keep is None else keep / f"{collection.name}.mini-cross.{reranker.fingerprint[:12]}.npz"
    stored: dict[tuple[str, int], float] = {}
    if path is not None and path.exists():
        with np.load(path) as file:
            keys = zip(file["queries"].tolist(), file["rows"].tolist(), strict=True)
            stored = dict(zip(keys, file["scores"].tolist(), strict=True))
    for number, (query, rows) in enumerate(zip(collection.queries, candidates, strict=True), 1):
        fresh = [row for row in rows.tolist() if (query.query_id, row) not in stored]
        scores = reranker.score(query, [collection.documents[row] for row in fresh])
        stored |= {(query.query_id, row): float(score) for row, score in zip(fresh, scores, strict=True)}
        if path is not None and (number % 20 == 0 or number == len(candidates)):
            names, row_numbers = (np.array(part) for part in zip(*stored, strict=True))
            np.savez(path, queries=names, rows=row_numbers, scores=np.array(list(stored.values())))
    return [
        np.array([stored[query.query_id, row] for row in rows.tolist()], dtype=np.float32)
        for query, rows in zip(collection.queries, candidates, strict=True)
    ]


def _ranked(scored, depth: int) -> Candidates:  # type: ignore[no-untyped-def]
    ranked = []
    for scores in scored:
        rows = best(scores.astype(np.float32), depth)
        ranked.append((rows, scores[rows].astype(np.float32)))
    return as_candidates(ranked, depth)


def _matrix(vectors: SparseVectors):  # type: ignore[no-untyped-def]
    from scipy.sparse import csr_matrix

    return csr_matrix((vectors.weights, vectors.terms, vectors.offsets), shape=(len(vectors), vectors.vocabulary))


if __name__ == "__main__":
    main()
