"""JSON of unusual values."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.service.runtime.json_encoding import to_json

unusual = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(unusual)
def test_any_value_becomes_json(value: Any) -> None:
    parsed = orjson.loads(to_json(value))
    assert isinstance(parsed, list | dict) == isinstance(value, list | dict)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.none()))
def test_plain_values_survive_json(value: dict[str, Any]) -> None:
    assert json.loads(to_json(value)) == value
