"""Errors on the wire: RFC 9457 problem details with a code and the request's id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from chamfer.core.errors import ChamferError, Internal, InvalidInput, NotFound, Overloaded, Unavailable

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:chamfer:problem:"


class ClientLeft(Exception):  # an event rather than an error
    """The client closed the connection: nobody reads an answer."""


class TooLarge(InvalidInput):
    """The request has more bytes than the service reads."""

    code = "too_large"
    status = 413


class MethodNotAllowed(InvalidInput):
    """The path exists, but not for this method."""

    code = "method_not_allowed"
    status = 405


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in a body: a JSON pointer (RFC 6901) and what is wrong there."""

    pointer: str
    detail: str


class InvalidBody(InvalidInput):
    """A body with faults in named places."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        super().__init__(f"{first.pointer or 'body'}: {first.detail}{more}")

    def under(self, pointer: str) -> InvalidBody:
        """The same faults in a body that is a part of another."""
        return InvalidBody(FieldError(pointer + fault.pointer, fault.detail) for fault in self.errors)

    @classmethod
    def of(cls, error: ValidationError) -> InvalidBody:
        """The same faults with JSON pointers; at most twenty, without the caller's values."""
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return cls(FieldError(json_pointer(fault["loc"]), fault["msg"]) for fault in found[:20])


def json_pointer(location: Iterable[str | int]) -> str:
    """RFC 6901 from pydantic's location; the names of union members (in angle brackets) are not part of the body."""
    parts = [str(part) for part in location]
    inner = [p for p in parts[:-1] if not (p.startswith("<") and p.endswith(">"))]
    last = [p for p in parts[-1:] if p != "[key]" and p not in _UNION_TAGS]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1")[:100] for part in inner + last)


_UNION_TAGS = {"<name>", "<plan>", "<interpolation>", "<rrf>"}


def problem(error: ChamferError, request_id: str, instance: str) -> dict[str, Any]:
    """The members of a problem document. Faults of the service itself are named by code alone: the log has the rest."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "detail": error.detail if error.status != 500 else "the service failed; its log has more under this request id",
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
    }
    if isinstance(error, InvalidBody):
        body["errors"] = [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors]
    if isinstance(error, Overloaded):
        body["retry_after_seconds"] = ceil(error.retry_after_seconds)
    return body


def problem_headers(error: ChamferError) -> dict[str, str]:
    """Retry-After where trying again makes sense."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(ceil(error.retry_after_seconds))}
    return {"Retry-After": "1"} if isinstance(error, Unavailable) else {}


def problem_response(
    error: ChamferError, request_id: str, instance: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The whole answer to a failed request."""
    return Response(
        to_json(problem(error, request_id, instance)),
        status_code=error.status,
        headers={**problem_headers(error), **(headers or {})},
        media_type=MEDIA_TYPE,
    )


def from_status(status: int, detail: str) -> ChamferError:
    """The error for a status that the web framework raised."""
    if status == 404:
        return NotFound("there is nothing at this path; /openapi.json lists what there is")
    if status == 405:
        return MethodNotAllowed("this path does not take this method; the Allow header lists those it takes")
    return InvalidInput(detail) if status < 500 else Internal(detail)


def to_json(value: Any) -> bytes:
    """UTF-8 JSON; NaN and infinity become null, half-formed text is mended, what JSON lacks becomes its text form."""
    try:
        return orjson.dumps(value, default=str)
    except TypeError:
        return orjson.dumps(_mended(value), default=str)


def _mended(value: Any) -> Any:
    """The value as orjson takes it: lone surrogates replaced, keys and integers beyond 64 bits made strings."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    if isinstance(value, Mapping):
        return {_mended(str(key)): _mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(item) for item in value]
    return value
