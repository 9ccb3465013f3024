"""`chamfer evaluate`: plans side by side on judged queries."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from chamfer.cli import printing
from chamfer.core.errors import ChamferError, InvalidInput
from chamfer.core.evaluation import (
    DEFAULT_MEASURES,
    Evaluation,
    Qrel,
    ScoredDoc,
    evaluate,
    holm,
    parse_measures,
    significance,
    strictly_falling,
    write_run,
)

if TYPE_CHECKING:
    from chamfer.core.types import Query
    from chamfer.indexing.collection.collection import Collection
    from chamfer.service.search.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class PlanResult:
    """One plan over all judged queries."""

    plan: str
    run: list[ScoredDoc]
    evaluation: Evaluation
    p50_ms: float
    p95_ms: float
    bytes_per_document: float

    def as_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "measures": self.evaluation.means,
            "latency_ms": {"p50": self.p50_ms, "p95": self.p95_ms},
            "bytes_per_document": self.bytes_per_document,
        }


def compare_plans(
    pipeline: Pipeline, plans: list[str], queries: list[Query], qrels: list[Qrel], measures: list[str]
) -> list[PlanResult]:
    """Runs every query through every plan, one request at a time, plans interleaved. Latency is wall time."""
    from chamfer.service.search.request import SearchRequest

    depth = max([*(int(m.params.get("cutoff", 1000)) for m in parse_measures(measures)), 10])
    runs: dict[str, list[ScoredDoc]] = {plan: [] for plan in plans}
    seconds: dict[str, list[float]] = {plan: [] for plan in plans}
    for number, query in enumerate([queries[0], *queries]):  # the first warms up and is not counted
        for plan in plans:
            start = time.perf_counter()
            (outcome,) = pipeline.run([SearchRequest(query=query.text, k=depth, plan=plan)])
            took = time.perf_counter() - start
            if isinstance(outcome, ChamferError):
                raise outcome
            if number == 0:
                continue
            seconds[plan].append(took)
            scores = strictly_falling(np.array([hit.score for hit in outcome.hits], dtype=np.float32))
            runs[plan] += [
                ScoredDoc(query.query_id, hit.doc_id, float(score))
                for hit, score in zip(outcome.hits, scores, strict=True)
            ]
    return [
        PlanResult(
            plan,
            runs[plan],
            evaluate(runs[plan], qrels, measures),
            float(np.percentile(seconds[plan], 50) * 1000),
            float(np.percentile(seconds[plan], 95) * 1000),
            plan_bytes_per_document(pipeline, plan),
        )
        for plan in plans
    ]


def plan_bytes_per_document(pipeline: Pipeline, plan: str) -> float:
    """Bytes on disk a live document that the plan's channels and the documents themselves take."""
    from chamfer.indexing.collection.collection import Collection

    collection = pipeline.collection
    assert isinstance(collection, Collection)
    chosen = pipeline.plans[plan].plan
    used = {*chosen.active, *([chosen.rescore.channel] if chosen.rescore else [])}
    parts = collection.bytes_by_part()
    total = sum(size for part, size in parts.items() if part not in collection.channels or part in used)
    return total / max(len(collection), 1)


def show(results: list[PlanResult], measures: list[str]) -> None:
    """The table of plans, and below it the paired tests."""
    rows = [
        [
            r.plan,
            *(f"{r.evaluation.means[name]:.4f}" for name in r.evaluation.means),
            f"{r.p50_ms:.1f}",
            f"{r.p95_ms:.1f}",
            f"{r.bytes_per_document:,.0f}",
        ]
        for r in results
    ]
    names = list(results[0].evaluation.means) if results else measures
    printing.table("Plans", ["plan", *names, "p50 ms", "p95 ms", "bytes/doc"], rows)
    pairs = list(combinations(results, 2))
    if not pairs:
        return
    rows = []
    for name in names:
        raw = [significance(a.evaluation.per_query[name], b.evaluation.per_query[name]) for a, b in pairs]
        for (a, b), p in zip(pairs, holm(raw), strict=True):
            rows.append(
                [
                    f"{b.plan} - {a.plan}",
                    name,
                    f"{b.evaluation.means[name] - a.evaluation.means[name]:+.4f}",
                    f"{p:.4f}",
                ]
            )
    printing.table(
        "Paired randomisation tests, Holm-corrected for the pairs", ["difference", "measure", "mean", "p"], rows
    )


def _evaluate(
    collection: Annotated[Path, typer.Argument(metavar="DIR", help="A collection.")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="BEIR folder: queries.jsonl and qrels/.")],
    split: Annotated[str, typer.Option(help="Which qrels.")] = "test",
    plan: Annotated[list[str] | None, typer.Option(help="Plan to run; repeat to compare.")] = None,
    measures: Annotated[str, typer.Option(help="As in papers.")] = " ".join(DEFAULT_MEASURES),
    run_out: Annotated[
        Path | None, typer.Option(help="TREC run file; with several plans, one NAME.PLAN a plan.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Plans compared on quality, latency and bytes per document."""
    from chamfer.api import open as open_searcher
    from chamfer.indexing.build.corpus import read_qrels, read_queries
    from chamfer.service.search.presets import DEFAULT_PRESET

    names = measures.split()
    qrels = read_qrels(queries, split)
    judged = {qrel.query_id for qrel in qrels}
    asked = [query for query in read_queries(queries) if query.query_id in judged]
    if not asked:
        raise InvalidInput(
            f"none of the {len(judged)} judged queries of split {split!r} is among the queries of {queries}"
        )
    with open_searcher(collection, config=config) as searcher:
        _warn_of_other_corpus(searcher.collection, qrels)
        plans = plan or [DEFAULT_PRESET]
        results = compare_plans(searcher.pipeline, plans, asked, qrels, names)
    if run_out is not None:
        for result in results:
            target = run_out if len(results) == 1 else run_out.with_name(f"{run_out.name}.{result.plan}")
            write_run(target, result.run, f"chamfer-{result.plan}")
    if as_json:
        typer.echo(json.dumps([result.as_json() for result in results], indent=1))
    else:
        show(results, names)


def _warn_of_other_corpus(collection: Collection, qrels: list[Qrel]) -> None:
    relevant = sorted({qrel.doc_id for qrel in qrels if qrel.relevance > 0})
    missing = int(np.count_nonzero(collection.rows(relevant) < 0))
    if 2 * missing > len(relevant):
        printing.messages.print(
            f"{missing:,} of {len(relevant):,} relevant documents are not in the collection: is it of another corpus?",
            style="yellow",
        )


def register(app: typer.Typer) -> None:
    app.command("evaluate")(_evaluate)
