"""Problem documents: pointers, headers, what is told and what is not; JSON of odd values."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core import errors
from chamfer.core.errors import ChamferError, Corrupt, InvalidInput, Overloaded, Unavailable
from chamfer.service.http.errors import (
    FieldError,
    InvalidBody,
    from_status,
    json_pointer,
    problem,
    problem_response,
    to_json,
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


@pytest.mark.parametrize("name", ["InvalidInput", "NotFound", "Conflict", "Corrupt", "Incompatible", "Unavailable"])
def test_every_error_has_its_status_and_code(name: str) -> None:
    kind: type[ChamferError] = getattr(errors, name)
    response = problem_response(kind("what was found"), "r-1", "/there")
    body = json.loads(response.body)
    assert (response.status_code, body["status"], body["code"]) == (kind.status, kind.status, kind.code)
    assert (body["request_id"], body["instance"]) == ("r-1", "/there")


def test_a_fault_of_the_service_is_not_described_to_the_caller() -> None:
    body = problem(Corrupt("/secret/path has a flipped bit"), "r-1", "/there")
    assert "secret" not in str(body)
    assert body["code"] == "corrupt"


def test_overload_says_when_to_come_back_in_whole_seconds() -> None:
    response = problem_response(Overloaded("full", retry_after_seconds=1.2), "r-1", "/there")
    assert response.headers["retry-after"] == "2"
    assert json.loads(response.body)["retry_after_seconds"] == 2
    assert problem_response(Unavailable("not yet"), "r-1", "/there").headers["retry-after"] == "1"
    assert "retry-after" not in problem_response(InvalidInput("no"), "r-1", "/there").headers


def test_faults_of_a_part_point_into_the_whole() -> None:
    error = InvalidBody([FieldError("/k", "too small"), FieldError("", "not an object")]).under("/searches/4")
    assert [fault.pointer for fault in error.errors] == ["/searches/4/k", "/searches/4"]
    assert error.detail == "/searches/4/k: too small (and 1 more)"


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (400, "invalid_input"), (503, "internal")]
)
def test_statuses_of_the_framework_become_errors(status: int, code: str) -> None:
    assert from_status(status, "detail").code == code


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(odd)
def test_any_value_becomes_json(value: Any) -> None:
    parsed = orjson.loads(to_json(value))
    assert isinstance(parsed, list | dict) == isinstance(value, list | dict)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.none()))
def test_plain_values_survive_json(value: dict[str, Any]) -> None:
    assert json.loads(to_json(value)) == value
