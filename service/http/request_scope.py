"""The outermost ASGI layer: request ids, request metrics, and a response where no other code has caught an error."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chamfer.core.errors import Internal
from chamfer.service.http.errors import problem_response
from chamfer.service.http.request_id import REQUEST_ID, request_id_of
from chamfer.service.runtime.telemetry import Telemetry

_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}


class RequestScope:
    """Plain ASGI middleware: assigns the request id, counts the response, and turns uncaught exceptions into a 500."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = scope[REQUEST_ID] = request_id_of(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            self._telemetry.log.error("unhandled error", request_id=request_id, path=scope["path"], exc_info=error)
            if not status:
                response = problem_response(Internal("unhandled"), request_id, scope["path"])
                await response(scope, receive, send_with_id)
        finally:
            self._telemetry.answered(_method(scope), _route(scope), status, perf_counter() - started)


def _route(scope: Scope) -> str:
    """The pattern of the route, for metrics; never a path that a caller invented."""
    if "route" in scope:
        return str(scope["route"].path)
    return scope["path"] if "endpoint" in scope and not scope["path_params"] else "unmatched"  # a page of the console


def _method(scope: Scope) -> str:
    """The method, for metrics; methods that a caller invented are counted as "other"."""
    return scope["method"] if scope["method"] in _METHODS else "other"
