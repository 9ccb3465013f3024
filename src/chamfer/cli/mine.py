"""`chamfer mine`: hard negatives from the live plan, with the pool of candidates that they were drawn from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument, ConfigOption, JsonOption, JudgedQueriesArgument
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.mining.config import MiningConfig
    from chamfer.mining.miner import JudgedQuery, MiningReport


OutOption = Annotated[
    Path, typer.Option(help="Pool log to write (.parquet); groups and documents are written beside it.")
]
ConsistencyOption = Annotated[
    int, typer.Option(help="Skip a query unless a positive is among its first N candidates; 0: never.")
]
ByOption = Annotated[
    str, typer.Option(help="Feature that --margin and --share compare: score, judge, dense.score, ...")
]
DuplicateOption = Annotated[
    float, typer.Option(help="Drop texts with at least this Jaccard overlap with a positive; above 1: none.")
]
TwinOption = Annotated[
    float, typer.Option(help="Drop candidates with at least this cosine to a positive; above 1: none.")
]
ClustersOption = Annotated[int, typer.Option(help="Number of k-means clusters of the corpus (LEMON); 0: no clusters.")]
NearestOption = Annotated[
    int, typer.Option(help="With --clusters: keep candidates from the N clusters nearest to the query.")
]
ModalityOption = Annotated[
    str,
    typer.Option(
        help="Metadata field with a document's modality: draw negatives of the positive's and of other modalities."
    ),
]
StrideOption = Annotated[int, typer.Option(help="Cyclic stride through the remaining candidates; 1 draws the hardest.")]


def _mine(
    collection: CollectionArgument,
    queries: JudgedQueriesArgument,
    out: OutOption,
    split: Annotated[str, typer.Option(help="Name of the qrels split.")] = "train",
    source: Annotated[str, typer.Option(help="Source name of the groups. Default: the folder name of QUERIES.")] = "",
    limit: Annotated[int, typer.Option(help="Mine only the first LIMIT queries; 0: all.")] = 0,
    plan: Annotated[str, typer.Option(help="Plan that retrieves the candidates.")] = "balanced",
    depth: Annotated[int, typer.Option(help="Number of candidates per query.")] = 100,
    ranks: Annotated[str, typer.Option(help="FIRST-LAST: ranks from which negatives may come. Default: all.")] = "",
    consistency: ConsistencyOption = 50,
    by: ByOption = "score",
    margin: Annotated[float | None, typer.Option(help="Drop candidates above positive - margin.")] = None,
    share: Annotated[float | None, typer.Option(help="Drop candidates above positive - share * |positive|.")] = None,
    judge: Annotated[str, typer.Option(help="Reranker that scores every pair.")] = "",
    beta: Annotated[float, typer.Option(help="Drop candidates that the judge scores above positive - beta.")] = 0.05,
    duplicate: DuplicateOption = 0.5,
    twin: TwinOption = 0.95,
    clusters: ClustersOption = 0,
    nearest: NearestOption = 3,
    modality: ModalityOption = "",
    wrong: Annotated[int, typer.Option(help="With --modality: negatives of another modality per query.")] = 4,
    keep: Annotated[int, typer.Option(help="Number of negatives drawn per query.")] = 8,
    stride: StrideOption = 5,
    block: Annotated[int, typer.Option(help="Number of queries per checkpoint.")] = 256,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Mine hard negatives for judged queries. After an interruption, run the same command again to resume."""
    from chamfer.mining.config import MiningConfig

    first, last = _parse_ranks(ranks, depth)
    mining = MiningConfig(
        plan=plan,
        depth=depth,
        first_rank=first,
        last_rank=last,
        consistency=consistency,
        by=by,
        margin=margin,
        share=share,
        beta=beta,
        duplicate=duplicate,
        twin=twin,
        clusters=clusters,
        nearest=nearest,
        modality=modality,
        wrong=wrong,
        keep=keep,
        stride=stride,
        block=block,
    )
    judged_queries = read_judged_queries(queries, split)[: limit or None]
    labels = (source or queries.resolve().name, split)
    _show(_run(collection, judged_queries, out, mining, judge, labels, config), as_json)


def _run(
    collection: Path,
    judged_queries: list[JudgedQuery],
    out: Path,
    mining: MiningConfig,
    judge: str,
    labels: tuple[str, str],
    config: Path | None,
) -> MiningReport:
    from chamfer import api
    from chamfer.mining.miner import mine
    from chamfer.settings import load_settings

    settings = load_settings(config)
    with api.open(collection, settings=settings) as searcher, terminal.count_progress("mine") as show:
        reranker = api.reranker_of(settings, judge) if judge else None
        return mine(searcher, judged_queries, out, mining, judge=reranker, labels=labels, progress=show)


def _show(report: MiningReport, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
        return
    total = max(sum(report.fates.values()), 1)
    rows = [[fate, f"{count:,}", f"{count / total:.1%}"] for fate, count in report.fates.items()]
    terminal.table(f"{report.groups:,} groups of {report.queries:,} queries", ["fate", "candidates", "share"], rows)
    if report.unknown:
        terminal.messages.print(
            f"{report.unknown:,} queries have no relevant document in the collection", style="yellow"
        )


def read_judged_queries(queries: Path, split: str) -> list[JudgedQuery]:
    """Queries with the ids of their relevant documents; InvalidInput if no query has any."""
    from chamfer.indexing.building.corpus import read_qrels, read_queries
    from chamfer.mining.miner import JudgedQuery

    relevant: dict[str, list[str]] = {}
    for qrel in read_qrels(queries, split):
        if qrel.relevance > 0:
            relevant.setdefault(qrel.query_id, []).append(qrel.doc_id)
    judged_queries = [
        JudgedQuery(q, tuple(relevant[q.query_id])) for q in read_queries(queries) if q.query_id in relevant
    ]
    if not judged_queries:
        raise InvalidInput(f"no query of {queries} has a relevant document in split {split!r}")
    return judged_queries


def _parse_ranks(text: str, depth: int) -> tuple[int, int]:
    if not text:
        return 1, depth
    first, separator, last = text.partition("-")
    if not (separator and first.isdecimal() and last.isdecimal()):
        raise InvalidInput(f"--ranks is {text!r}, expected FIRST-LAST, for example 50-100")
    return int(first), int(last)


def register(app: typer.Typer) -> None:
    app.command("mine")(_mine)
