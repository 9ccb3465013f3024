"""Errors on the wire: statuses, pointers, headers, and what is withheld from the client."""

from __future__ import annotations

import json

import pytest

from chamfer.core import errors
from chamfer.core.errors import (
    ChamferError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    Incompatible,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)
from chamfer.service.http.errors import (
    FieldError,
    InvalidBody,
    MethodNotAllowed,
    TooLarge,
    cohere_error,
    json_pointer,
    problem,
    problem_response,
    status_of,
    tei_error,
)


@pytest.mark.parametrize(
    ("location", "pointer"),
    [
        ((), ""),
        (("k",), "/k"),
        (("plan", "<plan>", "fusion", "<rrf>", "k"), "/plan/fusion/k"),
        (("plan", "<name>"), "/plan"),
        (("plan", "<plan>", "channels", "dense", "[key]"), "/plan/channels/dense"),
        (("searches", 3, "a/b~c"), "/searches/3/a~1b~0c"),
        (("<script>",), "/<script>"),
    ],
)
def test_locations_become_json_pointers(location: tuple[str | int, ...], pointer: str) -> None:
    assert json_pointer(location) == pointer


@pytest.mark.parametrize(
    ("error", "status", "tei_status"),
    [
        (InvalidInput("x"), 400, 422),
        (InvalidBody([FieldError("/k", "x")]), 400, 422),
        (NotFound("x"), 404, 424),
        (MethodNotAllowed("x"), 405, 405),
        (Conflict("x"), 409, 409),
        (TooLarge("x"), 413, 413),
        (Overloaded("x"), 429, 429),
        (Corrupt("x"), 500, 424),
        (Incompatible("x"), 500, 424),
        (Internal("x"), 500, 424),
        (Unavailable("x"), 503, 503),
        (DeadlineExceeded("x"), 504, 424),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ChamferError) else "",
)
def test_every_error_has_its_status_in_every_format(error: ChamferError, status: int, tei_status: int) -> None:
    response = problem_response(error, "r-1", "/there")
    body = json.loads(response.body)
    assert (status_of(error), response.status_code, body["status"], body["code"]) == (
        status,
        status,
        status,
        error.code,
    )
    assert (body["request_id"], body["instance"]) == ("r-1", "/there")
    assert cohere_error(error, "r-1")[0] == status
    assert tei_error(error)[0] == tei_status


def test_the_error_classes_have_no_http_status() -> None:
    assert not any(hasattr(kind, "status") for kind in vars(errors).values())


def test_a_fault_of_the_service_is_not_described_to_the_caller() -> None:
    body = problem(Corrupt("/secret/path has a flipped bit"), "r-1", "/there")
    assert "secret" not in str(body)
    assert body["code"] == "corrupt"


def test_overload_responses_have_retry_after_in_whole_seconds() -> None:
    response = problem_response(Overloaded("full", retry_after_seconds=1.2), "r-1", "/there")
    assert response.headers["retry-after"] == "2"
    assert json.loads(response.body)["retry_after_seconds"] == 2
    assert problem_response(Unavailable("not yet"), "r-1", "/there").headers["retry-after"] == "1"
    assert "retry-after" not in problem_response(InvalidInput("no"), "r-1", "/there").headers


def test_pointers_of_a_nested_body_are_prefixed_with_its_position() -> None:
    error = InvalidBody([FieldError("/k", "too small"), FieldError("", "not an object")]).under("/searches/4")
    assert [fault.pointer for fault in error.errors] == ["/searches/4/k", "/searches/4"]
    assert error.detail == "/searches/4/k: too small (and 1 more)"
