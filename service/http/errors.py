"""Errors on the wire: HTTP statuses, RFC 9457 problem documents, and the error bodies of the Cohere and TEI APIs.

Every other module raises a ChamferError. Its status and its body are decided here alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chamfer.core.errors import (
    ChamferError,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)
from chamfer.service.http.request_id import REQUEST_ID
from chamfer.service.runtime.json_encoding import to_json
from chamfer.service.runtime.telemetry import Telemetry

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:chamfer:problem:"
SERVICE_FAILED = "the service failed; its log has the details under this request id"
RERANKER_FAILED = "the reranker failed; the log of the service has the details"


class ClientDisconnected(Exception):  # an event, not an error: there is nobody to respond to
    """The client closed the connection before the response."""


class TooLarge(InvalidInput):
    """The request is larger than the service accepts."""

    code = "too_large"


class MethodNotAllowed(InvalidInput):
    """The path exists, but not for this method."""

    code = "method_not_allowed"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One error in a body: a JSON pointer (RFC 6901), and what is wrong there."""

    pointer: str
    detail: str


class InvalidBody(InvalidInput):
    """An invalid body, with the JSON pointer of each error."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        super().__init__(f"{first.pointer or 'body'}: {first.detail}{more}")

    def under(self, pointer: str) -> InvalidBody:
        """The same errors for a body that is part of another."""
        return InvalidBody(FieldError(pointer + error.pointer, error.detail) for error in self.errors)

    @classmethod
    def of(cls, error: ValidationError) -> InvalidBody:
        """The errors of pydantic with JSON pointers: at most twenty, and without the values of the caller."""
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return cls(FieldError(json_pointer(fault["loc"]), fault["msg"]) for fault in faults[:20])


# The status of each kind of error. A kind that is not listed has the status of its nearest listed parent.
STATUSES: Mapping[type[Exception], int] = {
    ChamferError: 500,
    InvalidInput: 400,
    NotFound: 404,
    MethodNotAllowed: 405,
    Conflict: 409,
    TooLarge: 413,
    Overloaded: 429,
    ClientDisconnected: 499,  # as nginx logs it; nobody receives it
    Unavailable: 503,
    DeadlineExceeded: 504,
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


_UNION_TAGS = {"<name>", "<plan>", "<interpolation>", "<rrf>"}


def json_pointer(location: Iterable[str | int]) -> str:
    """RFC 6901 from pydantic's location; the tags of union members (in angle brackets) are not part of the body."""
    parts = [str(part) for part in location]
    inner = [p for p in parts[:-1] if not (p.startswith("<") and p.endswith(">"))]
    last = [p for p in parts[-1:] if p != "[key]" and p not in _UNION_TAGS]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1")[:100] for part in inner + last)


def problem(error: ChamferError, request_id: str, instance: str) -> dict[str, Any]:
    """The members of a problem document. Errors of status 500 are named by code alone; the log has the details."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.code.replace("_", " ").capitalize(),
        "status": status,
        "detail": error.detail if status != 500 else SERVICE_FAILED,
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
    }
    if isinstance(error, InvalidBody):
        body["errors"] = [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors]
    if isinstance(error, Overloaded):
        body["retry_after_seconds"] = ceil(error.retry_after_seconds)
    return body


def problem_response(
    error: ChamferError, request_id: str, instance: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The response to a failed request."""
    return Response(
        to_json(problem(error, request_id, instance)),
        status_code=status_of(error),
        headers={**retry_headers(error), **(headers or {})},
        media_type=MEDIA_TYPE,
    )


def retry_headers(error: ChamferError) -> dict[str, str]:
    """Retry-After for errors that may go away."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(ceil(error.retry_after_seconds))}
    return {"Retry-After": "1"} if isinstance(error, Unavailable) else {}


def cohere_error(error: ChamferError, request_id: str) -> tuple[int, dict[str, Any]]:
    """(status, error body) of the Cohere (`message`) and Jina (`detail`) APIs."""
    detail = _reranker_detail(error)
    return status_of(error), {"id": request_id, "message": detail, "detail": detail}


_TEI_STATUSES = {400: 422, 404: 424, 500: 424, 504: 424}
_TEI_TYPES = {413: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def tei_error(error: ChamferError) -> tuple[int, dict[str, Any]]:
    """(status, error body) of text-embeddings-inference: 422 for an invalid body, 424 where the model failed."""
    status = status_of(error)
    status = _TEI_STATUSES.get(status, status)
    return status, {"error": _reranker_detail(error), "error_type": _TEI_TYPES.get(status, "Backend")}


def _reranker_detail(error: ChamferError) -> str:
    return error.detail if status_of(error) != 500 else RERANKER_FAILED


def log_failure(telemetry: Telemetry, event: str, error: ChamferError, request_id: str) -> None:
    """Logs an error of status 500, whose details are withheld from the client."""
    if status_of(error) == 500:
        telemetry.log.error(event, request_id=request_id, code=error.code, exc_info=error)


def add_error_responses(app: FastAPI, telemetry: Telemetry) -> None:
    """Makes the application respond to every exception of a route with a problem document."""

    async def on_chamfer_error(request: Request, error: ChamferError) -> Response:
        log_failure(telemetry, "request failed", error, request.scope[REQUEST_ID])
        return problem_response(error, request.scope[REQUEST_ID], request.url.path)

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        failure = _from_framework(error.status_code, str(error.detail))
        return problem_response(failure, request.scope[REQUEST_ID], request.url.path, error.headers)

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return problem_response(InvalidInput(str(error)), request.scope[REQUEST_ID], request.url.path)

    async def on_client_disconnected(_request: Request, error: ClientDisconnected) -> Response:
        return Response(status_code=status_of(error))

    for kind, respond in (
        (ChamferError, on_chamfer_error),
        (HTTPException, on_http_exception),
        (RequestValidationError, on_validation_error),
        (ClientDisconnected, on_client_disconnected),
    ):
        app.add_exception_handler(kind, respond)  # type: ignore[arg-type]  # each takes its own kind of exception


def _from_framework(status: int, detail: str) -> ChamferError:
    """The error for a status that the web framework raised."""
    if status == 404:
        return NotFound("no such path; /openapi.json lists the paths of this service")
    if status == 405:
        return MethodNotAllowed("this path does not support this method; the Allow header lists those it supports")
    return InvalidInput(detail) if status < 500 else Internal(detail)
