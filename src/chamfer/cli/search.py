"""`chamfer search`: one query against a collection, without a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chamfer.cli import terminal
from chamfer.cli.options import CollectionArgument, ConfigOption, JsonOption
from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from chamfer.core.types import Hit


def _search(
    collection: CollectionArgument,
    query: Annotated[str, typer.Argument(help="Text of the query.")],
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    plan: Annotated[str, typer.Option(help="Name of a preset or of a plan in the settings.")] = "balanced",
    condition: Annotated[str | None, typer.Option("--filter", help="Condition on the metadata, as JSON.")] = None,
    explain: Annotated[bool, typer.Option(help="Include the score of each stage (with --json).")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Search a collection once, without a server."""
    from chamfer import api

    parsed = _parse_json(condition)
    with api.open(collection, config=config) as searcher:
        result = searcher.search_many([query], k, plan=plan, filter=parsed, explain=explain)[0]
    if as_json:
        typer.echo(json.dumps([hit_as_json(hit) for hit in result.hits], ensure_ascii=False, indent=1))
    else:
        terminal.show_hits(result.hits)
        stages = "  ".join(f"{stage} {ms:.1f}" for stage, ms in result.timings_ms.items())
        terminal.messages.print(f"{len(result.hits)} hits from {result.snapshot}; ms: {stages}", style="dim")


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """A hit as plain values."""
    return {
        "rank": hit.rank,
        "doc_id": hit.doc_id,
        "score": hit.score,
        "title": hit.document.title,
        "text": hit.document.text,
        "metadata": dict(hit.document.metadata),
        "explanation": hit.explanation,
    }


def _parse_json(condition: str | None) -> Any:
    if condition is None:
        return None
    try:
        return json.loads(condition)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f'--filter is not valid JSON ({error}); expected, for example, {{"field": "year", "gte": 1990}}'
        ) from error


def register(app: typer.Typer) -> None:
    app.command("search")(_search)
