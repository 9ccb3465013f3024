"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from chamfer.core.errors import InvalidInput

CollectionArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the collection.")]
CorpusArgument = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS", help="BEIR folder, .jsonl or .ndjson (optionally .gz), Parquet file, or ir_datasets:ID."
    ),
]
JudgedQueriesArgument = Annotated[
    Path, typer.Argument(metavar="QUERIES", help="BEIR folder with queries.jsonl and qrels/.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]
EncoderOption = Annotated[str | None, typer.Option(help="Encoder: a catalogue name, or KIND:NAME.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnErrorOption = Annotated[str, typer.Option(help="What to do with an invalid line: stop, or skip it.")]
RejectsOption = Annotated[
    Path | None, typer.Option(help="File for skipped lines. Default: DIR.rejects.ndjson beside the collection.")
]


def stop_or_skip(value: str) -> Literal["stop", "skip"]:
    """The value of --on-error; InvalidInput for any other word."""
    if value == "stop":
        return "stop"
    if value == "skip":
        return "skip"
    raise InvalidInput(f"--on-error is {value!r}, expected stop or skip")
