"""Conditions against a plain evaluation of the same metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamfer.core.artifact import open_artifact, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.indexing.collection.filters import FieldTable, parse_condition, write_fields

FIELDS = ("a", "b", "c.d")
SCALARS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, 2.5]),
    st.booleans(),
    st.sampled_from(["x", "y", "", "1", "2020-01-02"]),
)
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "a": st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.none()),
        "b": SCALARS,
        "c": st.fixed_dictionaries({}, optional={"d": SCALARS}),
    },
)
LEAVES = st.one_of(
    st.builds(lambda f, v: {"field": f, "equals": v}, st.sampled_from(FIELDS), SCALARS),
    st.builds(lambda f, v: {"field": f, "in": v}, st.sampled_from(FIELDS), st.lists(SCALARS, max_size=3)),
    st.builds(lambda f, v: {"field": f, "exists": v}, st.sampled_from(FIELDS), st.booleans()),
    st.builds(
        lambda f, n, v: {"field": f, n: v},
        st.sampled_from(FIELDS),
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        st.one_of(st.integers(-2, 2), st.sampled_from(["x", "1", "2020-01-01"])),
    ),
    st.builds(
        lambda f, a, b: {"field": f, "gte": a, "lt": b}, st.sampled_from(FIELDS), st.integers(-3, 3), st.integers(-3, 3)
    ),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda c: {"and": c}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda c: {"or": c}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda c: {"not": c}, inner),
    ),
    max_leaves=6,
)


def values_of(metadata: dict[str, Any], field: str) -> list[Any]:
    value: Any = metadata
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return [v for v in values if v is not None]


def same_type(a: Any, b: Any) -> bool:
    kinds = [("b" if isinstance(v, bool) else "s" if isinstance(v, str) else "n") for v in (a, b)]
    return kinds[0] == kinds[1]


def plain(condition: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """The condition by its definition, for one document."""
    if "and" in condition:
        return all(plain(c, metadata) for c in condition["and"])
    if "or" in condition:
        return any(plain(c, metadata) for c in condition["or"])
    if "not" in condition:
        return not plain(condition["not"], metadata)
    values = values_of(metadata, condition["field"])
    if "exists" in condition:
        return bool(values) is condition["exists"]
    if "equals" in condition:
        return any(same_type(v, condition["equals"]) and v == condition["equals"] for v in values)
    if "in" in condition:
        return any(same_type(v, w) and v == w for v in values for w in condition["in"])
    tests = {"gt": "__gt__", "gte": "__ge__", "lt": "__lt__", "lte": "__le__"}
    bounds = [(tests[n], b) for n, b in condition.items() if n in tests]
    return any(all(same_type(v, b) and getattr(_wide(v), t)(_wide(b)) for t, b in bounds) for v in values)


def _wide(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(METADATA, max_size=12), conditions=st.lists(CONDITIONS, min_size=1, max_size=4))
def test_conditions_select_the_rows_of_their_definition(
    tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, Any]], conditions: list[dict[str, Any]]
) -> None:
    table = tabled(tmp_path_factory.mktemp("fields") / "t", documents)
    for condition in conditions:
        expected = [plain(condition, metadata) for metadata in documents]
        assert table.mask(parse_condition(condition)).tolist() == expected, condition


def tabled(path: Path, documents: list[dict[str, Any]]) -> FieldTable:
    with write_artifact(path, "test", {}) as writer:
        write_fields(writer, list(enumerate(documents)))
    return FieldTable(open_artifact(path, "test"), len(documents))


def test_a_number_and_a_boolean_and_a_string_of_it_are_three_values(tmp_path: Path) -> None:
    table = tabled(tmp_path / "t", [{"v": 1}, {"v": True}, {"v": "1"}, {"v": 1.0}])
    assert table.mask(parse_condition({"field": "v", "equals": 1})).tolist() == [True, False, False, True]
    assert table.mask(parse_condition({"field": "v", "equals": True})).tolist() == [False, True, False, False]
    assert table.mask(parse_condition({"field": "v", "equals": "1"})).tolist() == [False, False, True, False]


def test_field_names_are_listed(tmp_path: Path) -> None:
    assert tabled(tmp_path / "t", [{"a": 1, "c": {"d": ["x"]}}]).names() == ["a", "c.d"]


def test_the_bytes_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    for name, metadata in (("one", {"a": 1, "b": "x", "c": {"d": 2}}), ("two", {"c": {"d": 2}, "b": "x", "a": 1})):
        tabled(tmp_path / name, [metadata])
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ([], "/filter is list"),
        ({}, "expected and, or, not, or a field"),
        ({"field": "a"}, "expected equals"),
        ({"field": 3, "equals": 1}, "expected and, or, not"),
        ({"field": "a", "equals": None}, "/filter/equals is None"),
        ({"field": "a", "equals": {}}, "/filter/equals"),
        ({"field": "a", "equals": float("nan")}, "/filter/equals is nan"),
        ({"field": "a", "eq": 1}, "tests field 'a' with"),
        ({"field": "a", "equals": 1, "in": [1]}, "tests field 'a'"),
        ({"and": []}, "/filter/and"),
        ({"and": [{"field": "a", "in": 3}]}, "/filter/and/0/in"),
        ({"field": "a", "gt": 1, "lt": "x"}, "different types"),
        ({"field": "a", "gt": True}, "booleans"),
        ({"field": "a", "exists": "yes"}, "tests field"),
    ],
)
def test_invalid_conditions_are_refused_with_their_json_pointer(condition: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_condition(condition)


def test_conditions_are_bounded_in_number_and_depth() -> None:
    deep: dict[str, Any] = {"field": "a", "equals": 1}
    for _ in range(30):
        deep = {"not": deep}
    with pytest.raises(InvalidInput, match="deeper than 16"):
        parse_condition(deep)
    with pytest.raises(InvalidInput, match="more than 256"):
        parse_condition({"or": [{"field": "a", "equals": i} for i in range(300)]})
