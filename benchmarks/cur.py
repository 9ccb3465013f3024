"""Search with a cross-encoder: recall of its exact ranking by number of calls, for CUR and for retrieve-and-rerank.

    python -m benchmarks.cur [FOLDER ...] [--reranker NAME] [--documents 1000] [--anchors 100] [--queries 60]
                             [--keep DIR] [--quick] [--json]

FOLDER is a BEIR collection; its train (else dev, else other test) queries become anchor queries. The corpus is a
sample that contains every document judged for the chosen test queries. The exact ranking comes from scoring every pair
with the cross-encoder. Both score matrices are stored in DIR (--keep), so that an interrupted run resumes. --quick
takes 60 documents.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, demo_corpus, emit, parser, titled
from chamfer.api import build, open
from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate
from chamfer.core.types import AnchorScores, Candidates, Document, Encoding, Query
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.families.cur.anchor_scores import AnchorScorer
from chamfer.indexing.families.cur.family import CurConfig, CurFamily, CurRetriever
from chamfer.indexing.families.cur.search import CurSearch, search
from chamfer.indexing.kernels.topk import as_candidates
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.registry import load_reranker
from chamfer.settings import load_settings

BUDGETS = (25, 50, 100, 200, 500)
MEASURES = ("top-10 recall", "top-100 recall", "nDCG@10")
FIRST_STAGES = {"BM25": "fast", "dense": "dense", "hybrid": "balanced"}
PLANS = """
[build]
channels = ["dense", "lexical"]

[plans.dense.channels]
dense = { depth = 1000 }

[plans.fast.channels]
lexical = { depth = 1000 }

[plans.balanced.channels]
lexical = { depth = 1000, weight = 0.7 }
dense = { depth = 1000, weight = 0.3 }
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """A sampled collection: exact scores f32 [Q, N], the rankings `seeds` of each first stage, the CUR retriever."""

    documents: Sequence[Document]
    queries: Sequence[Query]
    qrels: Sequence[Qrel]
    exact: np.ndarray[Any, Any]
    seeds: dict[str, list[Candidates]]
    retriever: CurRetriever


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--reranker", default="mini-cross")
    arguments.add_argument("--documents", type=int, default=1000)
    arguments.add_argument("--anchors", type=int, default=100)
    arguments.add_argument("--queries", type=int, default=60)
    arguments.add_argument("--keep", type=Path)
    options = arguments.parse_args()
    if options.quick:
        options.documents, options.anchors, options.queries = 60, 10, 5
    rows: list[Row] = []
    for folder in options.folders or [demo_corpus()]:
        with tempfile.TemporaryDirectory() as work:
            keep = (options.keep or Path(work)) / folder.resolve().name
            bench, costs = prepare(folder, keep, Path(work), options)
            figures = [row for name, finder in contenders(bench).items() for row in measured(name, finder, bench)]
            rows += [*costs, *titled(folder.resolve().name, figures)]
    emit(rows, options.json)


def prepare(folder: Path, keep: Path, work: Path, options: Any) -> tuple[Bench, list[Row]]:
    """(the sampled collection with its first-stage rankings and score matrices, what the index costs)."""
    name = folder.resolve().name
    qrels = read_qrels(folder, "test")
    by_id = {query.query_id: query for query in read_queries(folder)}
    draw = np.random.default_rng(1)
    test = [by_id[i] for i in draw.permutation(sorted({q.query_id for q in qrels}))[: options.queries]]
    test_ids = {query.query_id for query in test}
    qrels = [qrel for qrel in qrels if qrel.query_id in test_ids]
    documents = sample(list(read_corpus(str(folder))), {q.doc_id for q in qrels}, options.documents)
    anchors = anchor_queries(folder, documents, options.anchors, avoided=test_ids)

    reranker = load_reranker(options.reranker, load_settings().models.device)
    scorer = AnchorScorer(reranker, anchors, keep, clock=time.process_time)
    estimate = scorer.estimate(documents, len(documents))
    columns = scorer.score(documents)
    exact = AnchorScorer(reranker, [query.text for query in test], keep).score(documents).values.values.T
    family = with_anchor_codec(columns)
    arrays = family.pack(documents, encoding_of(columns))
    retriever = family.open([SegmentPart(arrays, None, len(documents))])
    costs = [
        Row(
            f"{name}: index of {len(documents):,} documents and {len(anchors)} anchor queries", estimate.pairs, "calls"
        ),
        Row(f"{name}: cross-encoder", estimate.pairs_per_second, "pairs/s"),
        Row(f"{name}: bytes a document", sum(a.nbytes for a in arrays.values()) / len(documents), "B"),
    ]
    return Bench(documents, test, qrels, exact, rankings(documents, test, work), retriever), costs


def sample(documents: list[Document], judged_ids: set[str], n: int) -> list[Document]:
    """Every judged document and random others up to n documents, in corpus order."""
    others = [d.doc_id for d in documents if d.doc_id not in judged_ids]
    chosen = judged_ids | set(np.random.default_rng(2).permutation(others)[: max(n - len(judged_ids), 0)].tolist())
    return [document for document in documents if document.doc_id in chosen]


def anchor_queries(folder: Path, documents: Sequence[Document], n: int, avoided: Collection[str] = ()) -> list[str]:
    """Texts of train (else dev, else test) queries outside `avoided`, those with an answer in the sample first."""
    by_id = {query.query_id: query for query in read_queries(folder)}
    split = next(s for s in ("train", "dev", "test") if (folder / "qrels" / f"{s}.tsv").exists())
    sampled_ids = {document.doc_id for document in documents}
    answers: dict[str, bool] = {}
    for query_id, doc_id, _ in read_qrels(folder, split):
        if query_id not in avoided:
            answers[query_id] = answers.get(query_id, False) or doc_id in sampled_ids
    order = [str(i) for i in np.random.default_rng(3).permutation(sorted(answers))]
    order.sort(key=lambda query_id: not answers[query_id])
    return [by_id[query_id].text for query_id in order[:n]]


def rankings(documents: Sequence[Document], queries: Sequence[Query], work: Path) -> dict[str, list[Candidates]]:
    """The top 1,000 of each first stage for every query, by name of the stage."""
    (work / "plans.toml").write_text(PLANS)
    settings = load_settings(work / "plans.toml")
    row_of = {document.doc_id: row for row, document in enumerate(documents)}
    build(documents, work / "collection", settings=settings).close()
    by_stage: dict[str, list[Candidates]] = {}
    with open(work / "collection", settings=settings) as searcher:
        for name, plan in FIRST_STAGES.items():
            by_stage[name] = []
            for query in queries:
                hits = searcher.search(query.text, 1000, plan=plan)
                ranked = np.array([row_of[hit.doc_id] for hit in hits], dtype=np.int64)
                scores = np.array([hit.score for hit in hits], dtype=np.float32)
                by_stage[name].append(as_candidates([(ranked, scores)], 1000))
    return by_stage


Finder = Callable[[int, int], np.ndarray[Any, Any]]


def contenders(bench: Bench) -> dict[str, Finder]:
    """By name, a function from (query, budget) to the scored rows, best first."""
    finders: dict[str, Finder] = {f"rerank {name}": reranked(bench, name) for name in bench.seeds}
    finders |= {method: cur(bench, CurSearch(method=method), None) for method in ("anncur", "adacur", "axn")}
    finders |= {f"axn seeded by {name}": cur(bench, CurSearch(method="axn"), name) for name in bench.seeds}
    finders["adacur seeded by hybrid"] = cur(bench, CurSearch(method="adacur"), "hybrid")
    return finders


def reranked(bench: Bench, name: str) -> Finder:
    """Retrieve and rerank: spends the whole budget on the top of a first stage."""

    def find(query: int, budget: int) -> np.ndarray[Any, Any]:
        rows = bench.seeds[name][query].of(0)[0][:budget]
        return rows[np.argsort(-bench.exact[query, rows], kind="stable")]

    return find


def cur(bench: Bench, options: CurSearch, seeded_by: str | None) -> Finder:
    """A CUR search."""

    def find(query: int, budget: int) -> np.ndarray[Any, Any]:
        seeds = None if seeded_by is None else bench.seeds[seeded_by][query]
        answer = search(
            bench.retriever, lambda rows: bench.exact[query, rows], replace(options, budget=budget), seeds=seeds
        )
        assert answer.calls <= budget
        return answer.rows

    return find


def measured(name: str, find: Finder, bench: Bench) -> list[Row]:
    """Recall of the exact top 10 and top 100, and nDCG@10 by the judgements, at every budget."""
    rows = []
    for budget in (b for b in BUDGETS if b <= len(bench.documents)):
        scored_rows = [find(query, budget) for query in range(len(bench.queries))]
        for k in (10, 100):
            recall = np.mean([_recall(bench.exact[q], scored_rows[q], k) for q in range(len(scored_rows))])
            rows.append(Row(f"{name}: top-{k} recall at {budget} calls", float(recall), "share"))
        rows.append(Row(f"{name}: nDCG@10 at {budget} calls", _ndcg(scored_rows, bench), "nDCG@10"))
    return rows


def plot(axes: Any, rows: list[Row]) -> bool:
    """Recall of the exact top 10 and nDCG@10 against calls: a panel per measure and corpus, a line per method."""
    cells = _cells(rows)
    corpora = list(dict.fromkeys(corpus for corpus, _ in cells))
    if not corpora:
        return False
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(4.5 * len(corpora) + 1, 8)
    panels = figure.subplots(2, len(corpora), squeeze=False, sharex=True, sharey="row")
    for column, corpus in enumerate(corpora):
        for panel, measure in zip(panels[:, column], ("top-10 recall", "nDCG@10"), strict=True):
            for method, cell in (
                (method, cell) for (cell_corpus, method), cell in cells.items() if cell_corpus == corpus
            ):
                style = "--" if method.startswith("rerank") else "-"
                panel.plot(
                    list(cell[measure]), list(cell[measure].values()), style, marker="o", markersize=3, label=method
                )
            panel.set_xscale("log")
            panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.set_ylabel("share of the exact top 10 found" if measure != "nDCG@10" else measure)
        panels[0, column].set_title(corpus)
        panels[1, column].set_xlabel("cross-encoder calls per query")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return True


def table(rows: list[Row]) -> str:
    """One line per corpus and method: top-10 recall / top-100 recall / nDCG@10 at every budget."""
    head = " | ".join(f"{budget} calls" for budget in BUDGETS)
    lines = [f"| corpus | method | {head} |", "| --- | --- |" + " --- |" * len(BUDGETS)]
    for (corpus, method), cell in _cells(rows).items():
        figures = [
            " / ".join(f"{cell[m][budget]:.3f}" for m in MEASURES) if budget in cell[MEASURES[0]] else ""
            for budget in BUDGETS
        ]
        lines.append(f"| {corpus} | {method} | {' | '.join(figures)} |")
    costs = [f"- {row.what}: {row.value:,.4g} {row.unit}" for row in rows if " calls" not in row.what]
    return "\n".join(["Top-10 recall / top-100 recall of the exact ranking / nDCG@10.", "", *lines, "", *costs, ""])


def _cells(rows: list[Row]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    cells: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        corpus, method, rest = [*row.what.split(": "), "", ""][:3]
        measure, _, calls = rest.partition(" at ")
        if calls:
            cells.setdefault((corpus, method), {}).setdefault(measure, {})[int(calls.split()[0])] = row.value
    return cells


def _recall(exact: np.ndarray[Any, Any], scored_rows: np.ndarray[Any, Any], k: int) -> float:
    return float(np.isin(np.argsort(-exact, kind="stable")[:k], scored_rows).mean())


def _ndcg(scored_rows: Sequence[np.ndarray[Any, Any]], bench: Bench) -> float:
    run = [
        ScoredDoc(query.query_id, bench.documents[row].doc_id, -float(rank))
        for query, rows in zip(bench.queries, scored_rows, strict=True)
        for rank, row in enumerate(rows[:10].tolist())
    ]
    return evaluate(run, bench.qrels, ["nDCG@10"]).means["nDCG@10"]


def with_anchor_codec(columns: AnchorScores) -> CurFamily:
    """The family with the anchor queries of the scores as its codec."""
    family = CurFamily(CurConfig())
    return family.with_codec(family.learn(encoding_of(columns)))


def encoding_of(columns: AnchorScores) -> Encoding:
    """The anchor scores in the form that families take."""
    n = len(columns.values)
    return Encoding(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=bool), anchors=columns)


if __name__ == "__main__":
    main()
