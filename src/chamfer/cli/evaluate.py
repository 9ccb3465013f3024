"""`chamfer evaluate`: compares plans on judged queries."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument, ConfigOption, JsonOption, JudgedQueriesArgument
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
    """Run, measures, latency (ms) and size on disk of one plan over all judged queries."""

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
    """Runs every query through every plan, one request at a time, plans interleaved. Latency is wall-clock time."""
    from chamfer.service.search.request import SearchRequest

    depth = max([*(int(m.params.get("cutoff", 1000)) for m in parse_measures(measures)), 10])
    runs: dict[str, list[ScoredDoc]] = {plan: [] for plan in plans}
    seconds: dict[str, list[float]] = {plan: [] for plan in plans}
    for number, query in enumerate([queries[0], *queries]):  # the first one is a warm-up and is not counted
        for plan in plans:
            start = time.perf_counter()
            (outcome,) = pipeline.run([SearchRequest(query=query.text, k=depth, plan=plan)])
            elapsed = time.perf_counter() - start
            if isinstance(outcome, ChamferError):
                raise outcome
            if number == 0:
                continue
            seconds[plan].append(elapsed)
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
    """Bytes on disk per live document of the channels that the plan uses and of the stored documents."""
    from chamfer.indexing.collection.collection import Collection

    collection = pipeline.collection
    assert isinstance(collection, Collection)
    stages = pipeline.plans[plan].plan
    used = {*stages.active, *([stages.rescore.channel] if stages.rescore else [])}
    parts = collection.bytes_by_part()
    total = sum(size for part, size in parts.items() if part not in collection.channels or part in used)
    return total / max(len(collection), 1)


def show(results: list[PlanResult], measures: list[str]) -> None:
    """Prints a table of the plans and, for several plans, one of paired significance tests."""
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
    terminal.table("Plans", ["plan", *names, "p50 ms", "p95 ms", "bytes/doc"], rows)
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
    terminal.table(
        "Paired randomisation tests, Holm-corrected over the pairs", ["difference", "measure", "mean", "p"], rows
    )


def _evaluate(
    collection: CollectionArgument,
    queries: JudgedQueriesArgument,
    split: Annotated[str, typer.Option(help="Name of the qrels split.")] = "test",
    plan: Annotated[list[str] | None, typer.Option(help="Plan to run; repeat the option to compare plans.")] = None,
    measures: Annotated[str, typer.Option(help="Measures in ir_measures notation, separated by spaces.")] = " ".join(
        DEFAULT_MEASURES
    ),
    run_out: Annotated[
        Path | None, typer.Option(help="TREC run file to write; with several plans, one file NAME.PLAN per plan.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare plans on quality, latency and bytes per document."""
    from chamfer import api
    from chamfer.indexing.building.corpus import read_qrels, read_queries
    from chamfer.service.search.presets import DEFAULT_PRESET

    names = measures.split()
    qrels = read_qrels(queries, split)
    judged_ids = {qrel.query_id for qrel in qrels}
    judged_queries = [query for query in read_queries(queries) if query.query_id in judged_ids]
    if not judged_queries:
        raise InvalidInput(
            f"none of the {len(judged_ids)} judged queries of split {split!r} is among the queries of {queries}"
        )
    with api.open(collection, config=config) as searcher:
        _warn_of_other_corpus(searcher.collection, qrels)
        plans = plan or [DEFAULT_PRESET]
        results = compare_plans(searcher.pipeline, plans, judged_queries, qrels, names)
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
        terminal.messages.print(
            f"{missing:,} of {len(relevant):,} relevant documents are not in the collection; it may hold other data",
            style="yellow",
        )


def register(app: typer.Typer) -> None:
    app.command("evaluate")(_evaluate)
