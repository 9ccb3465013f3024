"""What all routes share: the direct way to an endpoint, its description, reading a body under a limit, JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chamfer.service.http.errors import MEDIA_TYPE, ClientLeft, TooLarge, to_json

REQUEST_ID = "chamfer.request_id"


class DirectRoute(APIRoute):
    """Calls its endpoint with the request and the path's parameters, and sends the Response that comes back.

    The signature still documents the route; what the framework would do with it on every request is left out.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **documentation: Any) -> None:
        super().__init__(path, endpoint, **documentation)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(request=Request(scope, receive), **scope["path_params"])
            await response(scope, receive, send)

        self.app = answer  # what the framework's route calls once it has matched


def documentation(answer: str | None = None, body: str | None = None) -> dict[str, Any]:
    """What OpenAPI says of a route beyond its docstring; schemas are added to the document by
    `chamfer.service.http.app`.
    """
    responses: dict[int | str, dict[str, Any]] = {
        "default": {"description": "Any error", "content": {MEDIA_TYPE: {"schema": _reference("Problem")}}}
    }
    if answer:
        responses[200] = {"description": "Success", "content": {"application/json": {"schema": _reference(answer)}}}
    described: dict[str, Any] = {"responses": responses, "response_class": Response, "response_model": None}
    if body:
        content = {"application/json": {"schema": _reference(body)}}
        described["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return described


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


async def read_body(request: Request, max_bytes: int, setting: str) -> bytes:
    """The whole body; TooLarge as soon as it is known to be, before it is read if its length is announced."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise _too_large(max_bytes, setting)
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(bytes(message.get("body", b"")))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes, setting)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int, setting: str) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes ({setting})")


class Json(Response):
    """JSON, without the general response's look through headers that nobody gave."""

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status
        self.background = None
        self.body = to_json(value)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
        if headers:
            self.raw_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
