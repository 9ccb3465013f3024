"""`chamfer build`, `add`, `delete`, `compact` and `inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from chamfer.cli import printing
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.indexing.build.recall_floor import ChannelRecall
    from chamfer.indexing.collection.collection import Collection

CollectionArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A collection.")]
CorpusArgument = Annotated[
    str, typer.Argument(metavar="CORPUS", help="BEIR folder, .jsonl or .ndjson (.gz too), Parquet, or ir_datasets:ID.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]
OnError = Annotated[str, typer.Option(help="What a bad line does: stop, or skip.")]
RejectsOption = Annotated[Path | None, typer.Option(help="Where skipped lines go; default OUT.rejects.ndjson.")]


def _build(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Directory of the collection.")],
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated: dense,multivector,fde,lemur,lexical,sparse,cur.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Catalogue name, or KIND:NAME.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    on_error: OnError = "stop",
    rejects: RejectsOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put a new snapshot in place of an existing collection.")
    ] = False,
    queries: Annotated[
        Path | None, typer.Option(help="BEIR folder or JSONL: queries for the recall floor, and anchor queries of cur.")
    ] = None,
    recall_floor: Annotated[
        float | None,
        typer.Option(help="Least share of the exact MaxSim top 10 that fde and lemur must hold; 0 builds anything."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Build a collection. Interrupted or killed, it goes on where it was when run again."""
    from chamfer.api import build_report
    from chamfer.indexing.build.builder import BuildRun
    from chamfer.indexing.build.corpus import Rejects, read_queries

    kept = Rejects(rejects or out.with_name(out.name + ".rejects.ndjson"))
    overrides = {"models.encoder": encoder, "models.device.device": device, "build.channels": channels}
    overrides["build.floor.recall"] = None if recall_floor is None else str(recall_floor)
    asked = () if queries is None else tuple(read_queries(queries))
    with printing.build_progress() as show:
        report = build_report(
            corpus,
            out,
            config=config,
            overrides={key: value for key, value in overrides.items() if value is not None},
            on_error=_stop_or_skip(on_error),
            rejects=kept,
            replace=replace,
            run=BuildRun(progress=show, queries=asked, notice=printing.messages.print),
        )
    each = report.n_bytes / max(report.documents, 1)
    printing.messages.print(
        f"{out} {report.snapshot}: {report.documents:,} documents, {printing.readable_bytes(report.n_bytes)} "
        f"({each:,.0f} bytes each), {report.seconds:.0f} s"
        + (
            f", {report.reused_blocks} of {report.blocks} blocks from an earlier attempt"
            if report.reused_blocks
            else ""
        )
    )
    if report.truncated:
        printing.messages.print(
            f"{report.truncated:,} documents were longer than the encoder reads; their ends were not encoded"
        )
    for channel, found in report.recall.items():
        printing.messages.print(f"{channel} {_held(found, report.documents)}")
    _say_rejects(kept.count, kept.path)


def _add(
    collection: CollectionArgument,
    corpus: CorpusArgument,
    replace: Annotated[bool, typer.Option("--replace", help="Replace documents whose id is there (upsert).")] = False,
    on_error: OnError = "stop",
    rejects: RejectsOption = None,
    config: ConfigOption = None,
) -> None:
    """Add documents, or with --replace upsert them. The encoder is the one that the collection was built with."""
    from chamfer.api import encoder_of, kept_reranker
    from chamfer.indexing.build.builder import BuildRun
    from chamfer.indexing.build.corpus import Rejects, read_corpus
    from chamfer.indexing.build.updates import add
    from chamfer.indexing.collection.snapshot import open_snapshot
    from chamfer.models.backends.config import decide
    from chamfer.settings import load_settings

    kept = Rejects(rejects or collection.with_name(collection.name + ".rejects.ndjson"))
    encoder, settings = encoder_of(collection, config=config), load_settings(config)
    reranker = kept_reranker(open_snapshot(collection).families(), settings)
    device = "cpu" if encoder is None else decide(settings.models.device).device
    with printing.build_progress() as show:
        report = add(
            collection,
            read_corpus(corpus, on_error=_stop_or_skip(on_error), rejects=kept),
            encoder=encoder,
            on_existing="replace" if replace else "error",
            run=BuildRun(progress=show, device=device, reranker=reranker, notice=printing.messages.print),
        )
    printing.messages.print(
        f"{report.snapshot}: {report.added:,} documents added, {report.deleted:,} of them replaced older ones"
    )
    _say_rejects(kept.count, kept.path)


def _delete(
    collection: CollectionArgument,
    doc_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Document ids.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids", help="File with one id a line.")] = None,
) -> None:
    """Delete documents by id."""
    from chamfer.indexing.build.updates import delete

    ids = list(doc_ids or [])
    if ids_file is not None:
        ids += [line for line in ids_file.read_text(encoding="utf-8").splitlines() if line]
    if not ids:
        raise InvalidInput("no id was given: name them, or a file with --ids")
    report = delete(collection, ids)
    printing.messages.print(f"{report.snapshot}: {report.deleted:,} documents deleted")
    for missing in report.missing:
        printing.messages.print(f"not there: {missing}", markup=False, style="yellow")


def _compact(collection: CollectionArgument) -> None:
    """Merge small segments and drop deleted documents; nothing is encoded again."""
    from chamfer.indexing.build.updates import compact

    report = compact(collection)
    printing.messages.print(f"{report.snapshot}: {report.deleted:,} deleted rows dropped")


def _inspect(
    collection: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A collection.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare its SHA-256.")] = False,
    encoder: Annotated[str, typer.Option(help="Look at what this encoder gives instead of a collection.")] = "",
    corpus: Annotated[str, typer.Option(help="With --encoder: what it encodes; default: the demo's tales.")] = "",
    split: Annotated[str, typer.Option(help="With --encoder: qrels whose pairs give the alignment.")] = "test",
    sample: Annotated[int, typer.Option(help="With --encoder: documents that are read.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
) -> None:
    """What a collection holds, and with --verify whether its bytes are what was written; or an encoder's geometry."""
    from chamfer.cli.diagnosing import inspect_encoder
    from chamfer.indexing.collection.collection import Collection

    if encoder:
        inspect_encoder(encoder, corpus, split, sample, as_json, config)
        return
    if collection is None:
        raise InvalidInput("name a collection (DIR), or an encoder with --encoder")
    with Collection.open(collection, verify=verify) as opened:
        facts, recall = describe(opened), dict(opened.recall)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    parts = facts.pop("bytes")
    del facts["recall"]  # said in words below
    facts["searches"] = "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in params.items())}"
        for name, params in facts["searches"].items()
    )
    facts |= {"channels": ", ".join(facts["channels"]), "metadata_fields": ", ".join(facts["metadata_fields"])}
    printing.table(str(collection), ["", ""], [[key.replace("_", " "), value] for key, value in facts.items()])
    for channel, found in recall.items():
        printing.data.print(f"{channel} {_held(found, facts['documents'])}")
    rows = [
        [part, printing.readable_bytes(size), f"{size / max(facts['documents'], 1):,.0f}"]
        for part, size in parts.items()
    ]
    printing.table("Bytes", ["part", "size", "per document"], rows)
    if verify:
        printing.messages.print("every file has the SHA-256 of its manifest", style="green")


def describe(collection: Collection) -> dict[str, Any]:
    """The facts of an opened collection as plain values; `searches`: what is in force where the size decides it."""
    from chamfer.indexing.families.multivector import MultivectorRetriever

    return {
        "snapshot": collection.snapshot,
        "documents": len(collection),
        "deleted_rows": collection.n_rows - len(collection),
        "truncated_documents": collection.n_truncated,
        "segments": len(collection.segments),
        "channels": {name: asdict(channel.family.config) for name, channel in collection.channels.items()},
        "searches": {
            name: channel.retriever.params
            for name, channel in collection.channels.items()
            if isinstance(channel.retriever, MultivectorRetriever)
        },
        "encoder": collection.encoder_name,
        "encoder_fingerprint": collection.encoder_fingerprint,
        "metadata_fields": collection.field_names(),
        "recall": {
            name: asdict(found) | {"expected": found.at(len(collection))} for name, found in collection.recall.items()
        },
        "bytes_per_document": round(collection.bytes_per_document, 1),
        "bytes": collection.bytes_by_part(),
    }


def _held(found: ChannelRecall, n_documents: int) -> str:
    """The measured recall in a sentence."""
    queries = f"{found.queries} {'made-up ' if found.made_up else ''}queries"
    larger = n_documents > found.documents
    expected = f"; expected over {n_documents:,}: {found.at(n_documents):.1%}" if larger else ""
    return (
        f"held {found.recall:.1%} of the exact MaxSim top 10 in {found.depth} candidates, measured with {queries} over "
        f"{found.documents:,} documents{expected}"
    )


def _stop_or_skip(value: str) -> Literal["stop", "skip"]:
    if value == "stop":
        return "stop"
    if value == "skip":
        return "skip"
    raise InvalidInput(f"--on-error is {value!r}, expected stop or skip")


def _say_rejects(count: int, path: Path | None) -> None:
    if count:
        printing.messages.print(f"{count:,} lines were skipped; they and the reasons are in {path}", style="yellow")


def register(app: typer.Typer) -> None:
    app.command("build")(_build)
    app.command("add")(_add)
    app.command("delete")(_delete)
    app.command("compact")(_compact)
    app.command("inspect")(_inspect)
