"""`chamfer mine`: hard negatives from the live plan, with the pool they came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chamfer.cli import printing
from chamfer.cli.writing import CollectionArgument, ConfigOption
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.mining.config import MiningConfig
    from chamfer.mining.miner import MiningReport, Question


def _mine(
    collection: CollectionArgument,
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="BEIR folder: queries.jsonl and qrels/.")],
    out: Annotated[Path, typer.Option(help="Pool log (.parquet); groups and documents go beside it.")],
    split: Annotated[str, typer.Option(help="Which qrels.")] = "train",
    source: Annotated[str, typer.Option(help="Name that the groups carry; default: that of QUERIES.")] = "",
    limit: Annotated[int, typer.Option(help="Only the first so many queries; 0: all.")] = 0,
    plan: Annotated[str, typer.Option(help="Plan whose candidates are mined.")] = "balanced",
    depth: Annotated[int, typer.Option(help="Candidates of a query.")] = 100,
    ranks: Annotated[str, typer.Option(help="FIRST-LAST: ranks that negatives may have.")] = "",
    consistency: Annotated[int, typer.Option(help="A positive must be among the first so many; 0: need not.")] = 50,
    by: Annotated[str, typer.Option(help="Feature that margins compare: score, judge, dense.score, ...")] = "score",
    margin: Annotated[float | None, typer.Option(help="Drop what is above positive - margin.")] = None,
    share: Annotated[float | None, typer.Option(help="Drop what is above positive - share * |positive|.")] = None,
    judge: Annotated[str, typer.Option(help="Reranker that scores every pair.")] = "",
    beta: Annotated[float, typer.Option(help="Drop what the judge puts above positive - beta.")] = 0.05,
    duplicate: Annotated[
        float, typer.Option(help="Drop texts that share so much with a positive; above 1: none.")
    ] = 0.5,
    twin: Annotated[float, typer.Option(help="Drop cosines with a positive from here on; above 1: none.")] = 0.95,
    clusters: Annotated[int, typer.Option(help="Cut the corpus into so many clusters (LEMON); 0: none.")] = 0,
    nearest: Annotated[int, typer.Option(help="Keep candidates of so many clusters nearest to the query.")] = 3,
    modality: Annotated[
        str, typer.Option(help="Metadata field with a document's modality: draw of the wanted and of wrong ones.")
    ] = "",
    wrong: Annotated[int, typer.Option(help="Negatives of a wrong modality, with --modality.")] = 4,
    keep: Annotated[int, typer.Option(help="Negatives drawn for a query.")] = 8,
    stride: Annotated[int, typer.Option(help="Cyclic stride through the survivors; 1: the hardest.")] = 5,
    block: Annotated[int, typer.Option(help="Queries between two points from which a killed run goes on.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
) -> None:
    """Mine hard negatives for judged queries. Killed, it goes on where it was when run again."""
    from chamfer.mining.config import MiningConfig

    first, last = _ranks(ranks, depth)
    chosen = MiningConfig(
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
    questions = read_questions(queries, split)[: limit or None]
    labels = (source or queries.resolve().name, split)
    _show(_mined(collection, questions, out, chosen, judge, labels, config), as_json)


def _mined(
    collection: Path,
    questions: list[Question],
    out: Path,
    chosen: MiningConfig,
    judge: str,
    labels: tuple[str, str],
    config: Path | None,
) -> MiningReport:
    from chamfer import api
    from chamfer.mining.miner import mine
    from chamfer.settings import load_settings

    settings = load_settings(config)
    with api.open(collection, settings=settings) as searcher, printing.count_progress("mine") as show:
        scorer = api.reranker_of(settings, judge) if judge else None
        return mine(searcher, questions, out, chosen, judge=scorer, labels=labels, progress=show)


def _show(report: MiningReport, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
        return
    total = max(sum(report.fates.values()), 1)
    rows = [[fate, f"{count:,}", f"{count / total:.1%}"] for fate, count in report.fates.items()]
    printing.table(f"{report.groups:,} groups of {report.queries:,} queries", ["fate", "candidates", "share"], rows)
    if report.unknown:
        printing.messages.print(
            f"{report.unknown:,} queries have no relevant document in the collection", style="yellow"
        )


def read_questions(queries: Path, split: str) -> list[Question]:
    """Judged queries with what is relevant to them; InvalidInput if there is none."""
    from chamfer.indexing.build.corpus import read_qrels, read_queries
    from chamfer.mining.miner import Question

    relevant: dict[str, list[str]] = {}
    for query_id, doc_id, grade in read_qrels(queries, split):
        if grade > 0:
            relevant.setdefault(query_id, []).append(doc_id)
    found = [Question(q, tuple(relevant[q.query_id])) for q in read_queries(queries) if q.query_id in relevant]
    if not found:
        raise InvalidInput(f"no query of {queries} has a relevant document in split {split!r}")
    return found


def _ranks(text: str, depth: int) -> tuple[int, int]:
    if not text:
        return 1, depth
    first, separator, last = text.partition("-")
    if not (separator and first.isdecimal() and last.isdecimal()):
        raise InvalidInput(f"--ranks is {text!r}, expected FIRST-LAST, for example 50-100")
    return int(first), int(last)


def _judge(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="Parquet: query, text; or mined groups.")],
    model: Annotated[str, typer.Option(help="Any reranker, by name.")],
    out: Annotated[Path, typer.Option(help="The same file with one more column.")],
    column: Annotated[str, typer.Option(help="Name of the column of scores.")] = "judge",
    block: Annotated[int, typer.Option(help="Rows between two points from which a killed run goes on.")] = 256,
    config: ConfigOption = None,
) -> None:
    """Score pairs with a reranker. Killed, it goes on where it was when run again."""
    from chamfer import api
    from chamfer.mining.teacher_scores import judge_file
    from chamfer.settings import load_settings

    reranker = api.reranker_of(load_settings(config), model)
    with printing.count_progress("judge") as show:
        count = judge_file(pairs, out, reranker, column=column, block=block, progress=show)
    printing.messages.print(f"{out}: {count:,} pairs")


def _selections(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A service's selection log, or a file of impressions.")],
    collection: CollectionArgument,
    out: Annotated[Path, typer.Option(help="Groups (.parquet); documents go beside them.")],
    name: Annotated[str, typer.Option(help="Served name of the collection; default: every one.")] = "",
    queries: Annotated[Path | None, typer.Option(help="Queries, where the log keeps digests alone.")] = None,
    dev: Annotated[float, typer.Option(help="Share of queries that are held out, in split dev.")] = 0.0,
) -> None:
    """Turn a log of searches into training groups: clicked, shown and retrieved documents with their features."""
    from chamfer.indexing.build.corpus import read_queries
    from chamfer.indexing.collection.collection import Collection
    from chamfer.mining import pool_tables as files
    from chamfer.mining.selections import pools_of, read_selections
    from chamfer.models.training.data.groups import write_documents
    from chamfer.models.training.data.parquet import write_table

    impressions, unreadable = read_selections(log)
    own = [i for i in impressions if not name or i.collection == name]
    for impression in own:
        impression.source = impression.source or impression.collection
        impression.split = "dev" if impression.is_held_out(dev) else impression.split
    pools = pools_of(own, read_queries(queries) if queries else ())
    if not pools:
        raise InvalidInput(
            f"none of {len(own):,} recorded searches has a known query; give --queries, or set selection_log.text"
        )
    write_table(out, files.table_of(pools))
    ids = sorted({document.doc_id for pool in pools for document in pool.documents})
    with Collection.open(collection) as opened:
        write_documents(files.documents_path(out), files.texts_of(opened, ids))
    said = (
        f"{out}: {len(pools):,} of {len(own):,} searches, {sum(pool.positive.any() for pool in pools):,} with a click"
    )
    printing.messages.print(said + (f"; {unreadable:,} lines could not be read" if unreadable else ""))


def register(app: typer.Typer) -> None:
    app.command("mine")(_mine)
    app.command("judge")(_judge)
    app.command("selections")(_selections)
