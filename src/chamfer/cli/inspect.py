"""`chamfer inspect`: what a collection holds; with --encoder, the geometry of an encoder's vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chamfer.cli import terminal
from chamfer.cli.options import ConfigOption, JsonOption
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chamfer.indexing.collection.collection import Collection
    from chamfer.indexing.collection.recall_report import ChannelRecall


def _inspect(
    collection: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Directory of the collection.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare each file's SHA-256 with its manifest.")
    ] = False,
    encoder: Annotated[str, typer.Option(help="Inspect the vectors of this encoder instead of a collection.")] = "",
    corpus: Annotated[str, typer.Option(help="With --encoder: corpus to encode. Default: the demo corpus.")] = "",
    split: Annotated[str, typer.Option(help="With --encoder: qrels split whose pairs measure alignment.")] = "test",
    sample: Annotated[int, typer.Option(help="With --encoder: number of documents to encode.")] = 1000,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Describe a collection and, with --verify, check its bytes; with --encoder, describe an encoder's vectors."""
    from chamfer.indexing.collection.collection import Collection

    if encoder:
        from chamfer.cli.inspect_encoder import inspect_encoder

        inspect_encoder(encoder, corpus, split, sample, as_json, config)
        return
    if collection is None:
        raise InvalidInput("nothing to inspect; pass the directory of a collection, or an encoder with --encoder")
    with Collection.open(collection, verify=verify) as opened:
        facts, recall = describe(opened), dict(opened.recall)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    _show(str(collection), facts, recall)
    if verify:
        terminal.messages.print("every file matches the SHA-256 of its manifest", style="green")


def describe(collection: Collection) -> dict[str, Any]:
    """An opened collection as plain values; `searches` has the search parameters that depend on the collection size."""
    from chamfer.indexing.families.multivector.search import MultivectorRetriever

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
            name: asdict(recall) | {"expected": recall.at(len(collection))}
            for name, recall in collection.recall.items()
        },
        "bytes_per_document": round(collection.bytes_per_document, 1),
        "bytes": collection.bytes_by_part(),
    }


def _show(title: str, facts: dict[str, Any], recall: Mapping[str, ChannelRecall]) -> None:
    n_documents = facts["documents"]
    bytes_by_part = facts.pop("bytes")
    del facts["recall"]  # printed as sentences below
    facts["searches"] = "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in params.items())}"
        for name, params in facts["searches"].items()
    )
    facts |= {"channels": ", ".join(facts["channels"]), "metadata_fields": ", ".join(facts["metadata_fields"])}
    terminal.table(title, ["", ""], [[key.replace("_", " "), value] for key, value in facts.items()])
    for channel, measured in recall.items():
        terminal.data.print(f"{channel}: {terminal.recall_sentence(measured, n_documents)}")
    rows = [
        [part, terminal.readable_bytes(size), f"{size / max(n_documents, 1):,.0f}"]
        for part, size in bytes_by_part.items()
    ]
    terminal.table("Bytes", ["part", "size", "per document"], rows)


def register(app: typer.Typer) -> None:
    app.command("inspect")(_inspect)
