"""What all routes share: the direct call of an endpoint, its OpenAPI description, bounded reading of bodies, JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chamfer.service.http.errors import MEDIA_TYPE, ClientDisconnected, TooLarge
from chamfer.service.runtime.json_encoding import to_json

Endpoint = Callable[..., Awaitable[Response]]
CollectionName = Annotated[str, Path(description="A name from GET /v1/collections.")]


class DirectRoute(APIRoute):
    """Calls its endpoint with the request and the parameters of the path, and sends the Response that it returns.

    The signature still documents the route. The framework's own conversions, exit stacks and thread pool, which would
    take longer than the rest of a request, are left out.
    """

    def __init__(self, path: str, endpoint: Endpoint, **documentation: Any) -> None:
        super().__init__(path, endpoint, **documentation)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(request=Request(scope, receive), **scope["path_params"])
            await response(scope, receive, send)

        self.app = respond  # what the framework's route calls once it has matched


def add_route(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Endpoint,
    *,
    response: str | None = None,
    body: str | None = None,
) -> None:
    """Adds a DirectRoute. `response` and `body` name the schemas of its OpenAPI description
    (`chamfer.service.http.openapi`).
    """
    responses: dict[int | str, dict[str, Any]] = {
        "default": {"description": "Any error", "content": {MEDIA_TYPE: {"schema": _reference("Problem")}}}
    }
    if response:
        responses[200] = {"description": "Success", "content": {"application/json": {"schema": _reference(response)}}}
    described: dict[str, Any] = {"responses": responses, "response_class": Response, "response_model": None}
    if body:
        content = {"application/json": {"schema": _reference(body)}}
        described["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    router.add_api_route(path, endpoint, methods=[method], route_class_override=DirectRoute, **described)


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


async def read_body(request: Request, max_bytes: int, setting: str) -> bytes:
    """The whole body. Raises TooLarge as early as possible: before reading, if the announced length is too large."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise _too_large(max_bytes, setting)
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        parts.append(bytes(message.get("body", b"")))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes, setting)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int, setting: str) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes ({setting})")


class Json(Response):
    """A JSON response without the general response's processing of headers, which these responses do not have."""

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status
        self.background = None
        self.body = to_json(value)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
        if headers:
            self.raw_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
