"""`chamfer plan`: measures first stages for late interaction on the user's own corpus and recommends one."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import ConfigOption, CorpusArgument, EncoderOption
from chamfer.core.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from chamfer.core.evaluation import Qrel
    from chamfer.core.protocols import Encoder
    from chamfer.core.types import Document, Encoding, Query, TokenVectors
    from chamfer.indexing.building.builder import BuildProgress
    from chamfer.indexing.planning.planner import Sample
    from chamfer.indexing.planning.recommendation import Advice

_SEED = 1
_BLOCK = 128


def _plan(
    corpus: CorpusArgument,
    queries: Annotated[
        Path | None,
        typer.Option(help="BEIR folder or JSONL of queries. Default: the corpus's queries, or generated ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for plan.html, plan.png, plan.json and plan.toml.")] = Path(
        "plan"
    ),
    sample: Annotated[int, typer.Option(help="Number of documents to measure on.")] = 5000,
    n_queries: Annotated[int, typer.Option(help="Number of queries to measure with.")] = 200,
    floor: Annotated[float, typer.Option(help="Minimum share of the exact top 10 that must be found.")] = 0.99,
    budget_ms: Annotated[float | None, typer.Option(help="Maximum milliseconds per query, on one CPU thread.")] = None,
    budget_bytes: Annotated[
        float | None, typer.Option(help="Maximum bytes per document, token vectors included.")
    ] = None,
    encoder: EncoderOption = None,
    config: ConfigOption = None,
) -> None:
    """Measure on a sample how well each first stage finds what exact MaxSim would, and recommend one.

    Exit status 1 if no first stage is within the budgets.
    """
    from chamfer.indexing.planning.planner import measure_all
    from chamfer.indexing.planning.recommendation import Budgets, advise
    from chamfer.models.registry import load_encoder
    from chamfer.settings import load_settings

    _check(sample, n_queries, floor, budget_ms, budget_bytes)
    settings = load_settings(config)
    documents, n_documents = draw_sample(corpus, sample)
    if not documents:
        raise InvalidInput(f"{corpus} contains no document; expected at least one to plan for")
    drawn_queries, qrels = _draw_queries(corpus, queries, documents, n_queries)
    name = encoder or settings.models.encoder
    encoded = _encode(load_encoder(name, settings.models.device), documents, drawn_queries)
    with terminal.build_progress() as show:
        measured = measure_all(encoded, _pool, lambda _, done, total: show(_progress("measure", done, total)))
    advice = advise(encoded, measured, n_documents, Budgets(floor, budget_ms, budget_bytes))
    _report(advice, name, _ndcg(advice, qrels), out)


def _check(sample: int, n_queries: int, floor: float, budget_ms: float | None, budget_bytes: float | None) -> None:
    if sample < 1 or n_queries < 1 or not 0 < floor <= 1:
        raise InvalidInput(
            f"--sample {sample}, --n-queries {n_queries}, --floor {floor}; expected >= 1, >= 1 and 0 < floor <= 1"
        )
    for option, budget in (("--budget-ms", budget_ms), ("--budget-bytes", budget_bytes)):
        if budget is not None and not budget > 0:
            raise InvalidInput(f"{option} is {budget}, expected more than 0")


def draw_sample(corpus: str, size: int) -> tuple[list[Document], int]:
    """(at most `size` documents drawn at random, size of the corpus), in one pass by reservoir sampling."""
    from chamfer.indexing.building.corpus import read_corpus

    stream = read_corpus(corpus)
    reservoir = list(islice(stream, size))
    n = len(reservoir)
    rng = random.Random(_SEED)
    for document in stream:
        n += 1
        slot = rng.randrange(n)
        if slot < size:
            reservoir[slot] = document
    return reservoir, n


def _draw_queries(
    corpus: str, queries: Path | None, documents: Sequence[Document], n: int
) -> tuple[list[Query], list[Qrel]]:
    """(at most n queries drawn at random, their qrels). Where there are qrels, only judged queries are drawn."""
    from chamfer.indexing.building.corpus import read_qrels, read_queries
    from chamfer.indexing.building.recall_floor import sampled_queries

    source = queries
    if source is None and (Path(corpus) / "queries.jsonl").exists():
        source = Path(corpus)
    if source is None:
        made_up = sampled_queries(documents, n)
        if not made_up:
            raise InvalidInput(
                "no document of the sample has any text to make queries from; pass queries with --queries"
            )
        return made_up, []
    available = read_queries(source)
    qrels: list[Qrel] = []
    if source.is_dir():
        try:
            qrels = read_qrels(source, "test")
        except NotFound:
            qrels = []
        judged_ids = {qrel.query_id for qrel in qrels}
        available = [query for query in available if query.query_id in judged_ids] if qrels else available
    drawn = random.Random(_SEED).sample(available, min(n, len(available)))
    ids = {query.query_id for query in drawn}
    return drawn, [qrel for qrel in qrels if qrel.query_id in ids]


def _encode(encoder: Encoder, documents: Sequence[Document], queries: Sequence[Query]) -> Sample:
    """The sample in every kind of vector that the encoder supports, ranked by exact MaxSim."""
    from chamfer.core.types import Encoding, VectorKind
    from chamfer.indexing.planning.planner import make_sample

    kinds: Collection[VectorKind] = [kind for kind in VectorKind if kind in encoder.spec.dims]
    if VectorKind.TOKENS not in kinds:
        raise InvalidInput(
            f"encoder {encoder.spec.name!r} produces {', '.join(kinds)}, but the planner needs token vectors; choose "
            "an encoder that produces them (--encoder)"
        )
    parts: list[Encoding] = []
    with terminal.build_progress() as show:
        for start in range(0, len(documents), _BLOCK):
            parts.append(encoder.encode_documents(documents[start : start + _BLOCK], kinds))
            show(_progress("encode", min(start + _BLOCK, len(documents)), len(documents)))
    terminal.messages.print(f"ranking {len(documents):,} documents for {len(queries):,} queries by exact MaxSim")
    return make_sample(documents, queries, Encoding.concatenate(parts), encoder.encode_queries(queries, kinds))


def _report(advice: Advice, encoder: str, ndcg: dict[str, float], out: Path) -> None:
    from chamfer.cli import plan_report
    from chamfer.core.artifact import replace_file
    from chamfer.indexing.planning.recommendation import settings_of

    head, rows = plan_report.table(advice, ndcg)
    summary = plan_report.summary(advice)
    terminal.table(f"First stages, {len(advice.sample.documents):,} of {advice.n_documents:,} documents", head, rows)
    for line in (*advice.remarks, summary):
        terminal.data.print(line, highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    settings = "" if advice.chosen is None else plan_report.toml(settings_of(advice.chosen, encoder))
    png = plan_report.picture(advice)
    (out / "plan.png").write_bytes(png)
    replace_file(out / "plan.html", plan_report.page(advice, settings, png, head, rows))
    record = {"summary": summary, "remarks": list(advice.remarks), "options": plan_report.as_json(advice)}
    record |= {"rows": [dict(zip(head, row, strict=True)) for row in rows]}
    replace_file(out / "plan.json", json.dumps(record, indent=1) + "\n")
    if settings:
        replace_file(out / "plan.toml", settings)
        terminal.messages.print(f"report: {out}/plan.html; to build it: chamfer build ... --config {out}/plan.toml")
    else:
        (out / "plan.toml").unlink(missing_ok=True)
        terminal.messages.print(f"see {out}/plan.html for all measurements", style="yellow")
        raise typer.Exit(1)


def _ndcg(advice: Advice, qrels: Sequence[Qrel]) -> dict[str, float]:
    """nDCG@10 of every source at 100 candidates; empty without qrels, or if the sample is not the whole corpus."""
    from chamfer.core.evaluation import ScoredDoc, evaluate
    from chamfer.indexing.planning.planner import final_order

    sample = advice.sample
    if not qrels or len(sample.documents) < advice.n_documents:
        return {}
    ndcg = {}
    for source in advice.measured:
        run = [
            ScoredDoc(query.query_id, sample.documents[row].doc_id, -float(rank))
            for number, query in enumerate(sample.queries)
            for rank, row in enumerate(final_order(source, sample, number, 100)[:10])
        ]
        ndcg[source.name] = evaluate(run, qrels, ["nDCG@10"]).means["nDCG@10"]
    return ndcg


def _pool(tokens: TokenVectors, name: str) -> TokenVectors:
    from chamfer.models.networks.token_pooling import parse_pooling, pool

    rules = parse_pooling(name)
    return pool(tokens, rules.document, normalised=rules.normalised)


def _progress(stage: str, done: int, total: int) -> BuildProgress:
    from chamfer.indexing.building.builder import BuildProgress

    return BuildProgress(stage, done, total)


def register(app: typer.Typer) -> None:
    app.command("plan")(_plan)
