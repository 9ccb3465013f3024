"""The reference page of the REST interface, from the OpenAPI document of the application."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chamfer.service.http.app import create_app
from chamfer.service.http.config import ServerConfig
from reference.configuration import NOTICE

Schema = Mapping[str, Any]
SHARED = "#/components/schemas/"
HEAD = """# REST interface

The service describes itself at `/openapi.json`; this page is written from that document. Bodies are JSON. Unless an
endpoint follows another service's interface (`/v1/rerank`, `/v2/rerank`, `/rerank`), errors are RFC 9457 problem
documents (`application/problem+json`, schema [Problem](#problem)) with a stable `code` and the id of the request.
[Plans](../guides/plans.md) and [reranking](../guides/reranking.md) have guides of their own.
"""


def rest_page() -> str:
    """docs/reference/rest.md."""
    document = openapi()
    parts = [NOTICE, HEAD, "## Endpoints\n"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append("\n".join(endpoint(method.upper(), path, operation)))
    parts.append("## Schemas\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        if not name.startswith("_"):
            parts.append("\n".join(component(name, schema)))
    return "\n".join(parts)


def openapi() -> dict[str, Any]:
    """The OpenAPI document of an application without collections."""

    def no_collection(path: Path) -> Any:
        raise AssertionError(f"{path} was opened to describe the interface")

    document: dict[str, Any] = create_app({}, ServerConfig(), no_collection).openapi()
    return document


def endpoint(method: str, path: str, operation: Schema) -> Iterator[str]:
    """One endpoint: what it does, its parameters, its body and its answer."""
    yield f"### {method} {path}\n"
    yield f"{operation.get('description', operation.get('summary', ''))}\n"
    for parameter in operation.get("parameters", ()):
        yield f"- `{parameter['name']}` ({parameter['in']}): {parameter.get('description', '')}"
    if body := _content(operation.get("requestBody", {})):
        yield f"- body: {shown(body)}"
    for status, response in operation.get("responses", {}).items():
        if status != "default" and (answer := _content(response)):
            yield f"- {status}: {shown(answer)}"
    yield ""


def component(name: str, schema: Schema) -> Iterator[str]:
    """One schema: a table of its fields, and its examples."""
    yield f"### {name}\n"
    if text := schema.get("description"):
        yield f"{_line(text)}\n"
    if fields := schema.get("properties"):
        yield "| field | default | type | meaning |\n| --- | --- | --- | --- |"
        required = schema.get("required", ())
        for field, value in fields.items():
            default = "required" if field in required else _default(value)
            yield f"| `{field}` | {default} | {shown(value)} | {_line(value.get('description', ''))} |"
        yield ""
    for example in schema.get("examples", ()):
        yield f"```json\n{json.dumps(example, indent=2)}\n```\n"


def shown(schema: Schema) -> str:
    """The type of a value in a few words, with links to the shared schemas and its bounds."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix(SHARED)
        return "object" if name.startswith("_") else f"[{name}](#{name.lower()})"
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        return " or ".join(dict.fromkeys(shown(each) for each in choices))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if values := schema.get("enum"):
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if schema.get("type") == "array":
        return f"array of {shown(schema.get('items', {}))}"
    inner = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(inner, Mapping):
        return f"object: name to {shown(inner)}"
    return f"{schema.get('type', 'any value')}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "minLength": "at least this many characters:",
        "maxLength": "at most this many characters:",
    }
    bounds = [f"{text} {schema[key]:g}" for key, text in words.items() if key in schema]
    return f" ({', '.join(bounds)})" if bounds else ""


def _default(schema: Schema) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _content(part: Schema) -> Schema:
    """The schema of a body or response; empty if it has none."""
    for content in part.get("content", {}).values():
        schema: Schema = content.get("schema", {})
        return schema
    return {}


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
