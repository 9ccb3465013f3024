"""`chamfer plan`: which first stage to build for late interaction, measured on the user's own corpus."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chamfer.cli import printing
from chamfer.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.evaluation import Qrel
    from chamfer.types import Document, Query
    from indexing.planner import Measured, Option, Sample

_SEED = 1
_QUERY_WORDS = 12


@dataclass(frozen=True, slots=True)
class Advice:
    """What the planner says, ready to print, draw and save."""

    n_documents: int
    sample: Sample
    measured: Sequence[Measured]
    options: Sequence[Option]
    chosen: Option | None
    reason: str
    direct_ms: float
    ndcg: dict[str, float]


def advise(
    documents: Sequence[Document],
    n_documents: int,
    queries: Sequence[Query],
    encoder: Any,
    *,
    qrels: Sequence[Qrel] = (),
    floor: float = 0.99,
    budget_ms: float | None = None,
    budget_bytes: float | None = None,
) -> Advice:
    """Encodes the sample, measures every source, and chooses."""
    from chamfer.types import VectorKind
    from indexing import planner
    from models.clustering import parse_pooling, pool

    kinds = [kind for kind in (VectorKind.DENSE, VectorKind.TOKENS) if kind in encoder.spec.dims]
    say = printing.messages.print
    say(f"encoding {len(documents):,} documents and {len(queries):,} queries")
    sample = planner.make_sample(
        documents, encoder.encode_documents(documents, kinds), encoder.encode_queries(queries, kinds)
    )
    measured: list[Measured] = []
    for source in planner.SOURCES:
        if source.family == "dense" and VectorKind.DENSE not in kinds:
            continue
        say(f"measuring {source.name}", style="dim")
        measured.append(
            planner.measure(source, sample, lambda tokens, name: pool(tokens, parse_pooling(name).document))
        )
    if VectorKind.DENSE in kinds:
        dense = next(each for each in measured if each.name == "dense")
        measured += [
            planner.union([dense, each], sample) for each in list(measured) if each.name in ("fde 2560", "fde 10240")
        ]
    choices = planner.options(measured, sample, n_documents)
    chosen, reason = planner.recommend(choices, floor=floor, budget_ms=budget_ms, budget_bytes=budget_bytes)
    whole = len(documents) == n_documents
    ndcg = _ndcg(sample, measured, documents, queries, qrels) if qrels and whole else {}
    return Advice(n_documents, sample, measured, choices, chosen, reason, planner.direct(sample, n_documents), ndcg)


def configuration(option: Option) -> str:
    """The settings that build and search as the option says."""
    from indexing.planner import settings_of

    channels, parameters, depths = settings_of(option)
    lines = ["[build]", f"channels = {json.dumps(channels)}", ""]
    for channel, values in parameters.items():
        lines.append(f"[build.parameters.{channel}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        lines.append("")
    lines.append("[plans.late.channels]")
    lines += [f"{channel} = {{ depth = {depth} }}" for channel, depth in depths.items()]
    lines += ["", "[plans.late.rescore]", 'channel = "multivector"', f"depth = {option.depth}", ""]
    return "\n".join(lines)


def picture(advice: Advice) -> bytes:
    """Recall of the exact top 10 against milliseconds a query, as PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from indexing.planner import pareto

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for each in advice.measured:
        own = [option for option in advice.options if option.measured is each]
        axes.plot([o.query_ms for o in own], [o.recall for o in own], marker="o", markersize=4, label=each.name)
    front = pareto(advice.options)
    axes.plot([o.query_ms for o in front], [o.recall for o in front], color="black", linewidth=0.8, linestyle=":")
    axes.plot([advice.direct_ms], [1.0], marker="*", color="black", linestyle="", label="exact MaxSim over all")
    if advice.chosen is not None:
        axes.plot(
            [advice.chosen.query_ms], [advice.chosen.recall], marker="o", markersize=13, fillstyle="none", color="red"
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"ms a query, one thread, {advice.n_documents:,} documents, without encoding the query")
    axes.set_ylabel("share of the exact top 10 that is found")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return out.getvalue()


def page(advice: Advice, png: bytes) -> str:
    """One self-contained HTML page: the picture, the choice and the table."""
    head, rows = _table(advice)
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    choice = "" if advice.chosen is None else f"<pre>{escape(configuration(advice.chosen))}</pre>"
    return (
        "<!doctype html><meta charset='utf-8'><title>Chamfer plan</title>"
        "<style>body{font:15px system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}td,th{padding:.2rem .6rem;"
        "text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
        "pre{background:#f4f4f4;padding:1rem}img{max-width:100%}</style>"
        f"<h1>First stages for {advice.n_documents:,} documents</h1><p>{escape(summary(advice))}</p>{choice}"
        f"<img alt='Recall against time' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table>"
    )


def summary(advice: Advice) -> str:
    """The recommendation in a sentence or two."""
    n_sample = len(advice.sample.documents)
    measured = f"Measured on {n_sample:,} of {advice.n_documents:,} documents."
    if advice.chosen is None:
        return f"{advice.reason}. {measured}"
    chosen = advice.chosen
    faster = "" if chosen.query_ms < advice.direct_ms else " Exact MaxSim over everything is faster still."
    return (
        f"Recommended: {chosen.measured.name} with {chosen.depth} candidates, {chosen.query_ms:.2f} ms a query "
        f"(exact MaxSim over all: {advice.direct_ms:.1f}), {chosen.bytes_per_document:,.0f} bytes a document with the "
        f"token vectors; {advice.reason}.{faster} {measured}"
    )


def _table(advice: Advice) -> tuple[list[str], list[list[str]]]:
    from indexing.planner import DEPTHS, TARGETS

    head = ["source", *(f"R10@{d}" for d in DEPTHS), "R100@1000", *(f"{t:.0%} needs" for t in TARGETS)]
    head += ["bytes/doc", "build ms/doc", "scan ms"]
    if advice.ndcg:
        head.append("nDCG@10 of 100")
    rows = []
    for each in advice.measured:
        row = [each.name, *(f"{each.recall_10[d]:.3f}" for d in DEPTHS), f"{each.recall_100[1000]:.3f}"]
        row += [str(each.candidates[t] or f"> {DEPTHS[-1]}") for t in TARGETS]
        row += [f"{each.bytes_per_document:,.0f}", f"{each.build_ms:.3f}", f"{each.query_ms:.2f}"]
        rows.append([*row, *([f"{advice.ndcg[each.name]:.4f}"] if advice.ndcg else [])])
    if advice.ndcg:
        rows.append(["exact MaxSim over all", *[""] * (len(head) - 2), f"{advice.ndcg['exact']:.4f}"])
    return head, rows


def _ndcg(
    sample: Sample,
    measured: Sequence[Measured],
    documents: Sequence[Document],
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
) -> dict[str, float]:
    """nDCG@10 of exact MaxSim over 100 candidates of each source, and over all documents."""
    from chamfer.evaluation import ScoredDoc, evaluate
    from indexing.planner import exact_order

    out = {}
    asked = {query.query_id for query in queries}
    own = [qrel for qrel in qrels if qrel.query_id in asked]
    for name, found in [("exact", sample.exact), *((each.name, each.found) for each in measured)]:
        ranked = exact_order(found, sample.exact, 100 if name != "exact" else len(documents))
        run = [
            ScoredDoc(query.query_id, documents[row].doc_id, -float(place))
            for query, rows in zip(queries, ranked, strict=True)
            for place, row in enumerate(rows[:10])
        ]
        out[name] = evaluate(run, own, ["nDCG@10"]).means["nDCG@10"]
    return out


def _sample(corpus: str, size: int) -> tuple[list[Document], int]:
    """(at most `size` documents drawn at random, the number of all). One pass, reservoir sampling."""
    from indexing.corpus import read_corpus

    stream = read_corpus(corpus)
    kept = list(islice(stream, size))
    n = len(kept)
    draw = random.Random(_SEED)
    for document in stream:
        n += 1
        place = draw.randrange(n)
        if place < size:
            kept[place] = document
    return kept, n


def _made_up(documents: Sequence[Document], n: int) -> list[Query]:
    """Queries where the user has none: the first words of random documents."""
    from chamfer.types import Query

    texts = [" ".join(document.content.split()[:_QUERY_WORDS]) for document in documents]
    chosen = random.Random(_SEED).sample([text for text in texts if text], min(n, sum(map(bool, texts))))
    return [Query(f"q{i}", text) for i, text in enumerate(chosen)]


def _plan(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="As for build.")],
    queries: Annotated[Path | None, typer.Option(help="BEIR folder or JSONL of queries.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for plan.html, plan.png, plan.json and plan.toml.")] = Path("plan"),
    sample: Annotated[int, typer.Option(help="Documents to measure on.")] = 5000,
    n_queries: Annotated[int, typer.Option(help="Queries to measure with.")] = 200,
    floor: Annotated[float, typer.Option(help="Share of the exact top 10 that must be found.")] = 0.99,
    budget_ms: Annotated[float | None, typer.Option(help="Milliseconds a query.")] = None,
    budget_bytes: Annotated[float | None, typer.Option(help="Bytes a document, token vectors included.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Catalogue name, or KIND:NAME.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Measure on a sample which first stage finds what exact MaxSim would, and recommend one."""
    from chamfer.evaluation import Qrel
    from chamfer.settings import load_settings
    from indexing.corpus import read_qrels, read_queries
    from models.registry import load_encoder

    if sample < 1 or n_queries < 1 or not 0 < floor <= 1:
        raise InvalidInput(
            f"sample {sample}, n-queries {n_queries}, floor {floor}; expected >= 1, >= 1 and 0 < floor <= 1"
        )
    settings = load_settings(config)
    documents, n_documents = _sample(corpus, sample)
    qrels: list[Qrel] = []
    if queries is None and (Path(corpus) / "queries.jsonl").exists():
        queries = Path(corpus)
    if queries is None:
        asked = _made_up(documents, n_queries)
    else:
        asked = read_queries(queries)
        if queries.is_dir() and (queries / "qrels" / "test.tsv").exists():
            qrels = [Qrel(*judgement) for judgement in read_qrels(queries, "test")]
            judged = {qrel.query_id for qrel in qrels}
            asked = [query for query in asked if query.query_id in judged]
        asked = random.Random(_SEED).sample(asked, min(n_queries, len(asked)))
    model = load_encoder(encoder or settings.models.encoder, settings.models.device)
    advice = advise(
        documents,
        n_documents,
        asked,
        model,
        qrels=qrels,
        floor=floor,
        budget_ms=budget_ms,
        budget_bytes=budget_bytes,
    )
    head, rows = _table(advice)
    printing.table(f"First stages, {len(documents):,} of {n_documents:,} documents", head, rows)
    printing.data.print(summary(advice))
    _save(advice, out)
    printing.messages.print(f"{out}/plan.html shows it; {out}/plan.toml builds it: chamfer build ... --config")


def _save(advice: Advice, out: Path) -> None:
    from chamfer.artifact import replace_file

    out.mkdir(parents=True, exist_ok=True)
    png = picture(advice)
    (out / "plan.png").write_bytes(png)
    replace_file(out / "plan.html", page(advice, png))
    head, rows = _table(advice)
    record = {"summary": summary(advice), "rows": [dict(zip(head, row, strict=True)) for row in rows]}
    replace_file(out / "plan.json", json.dumps(record, indent=1) + "\n")
    if advice.chosen is not None:
        replace_file(out / "plan.toml", configuration(advice.chosen))


def register(app: typer.Typer) -> None:
    app.command("plan")(_plan)
