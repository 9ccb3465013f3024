"""Conditions on metadata, and the sorted value tables that turn a condition into one bool per row.

In JSON: {"field": "year", "gte": 1990, "lt": 2000}, {"field": "lang", "equals": "en"}, {"field": "lang", "in": [...]},
{"field": "x", "exists": true}, {"and": [...]}, {"or": [...]}, {"not": {...}}. Dots reach into nested objects
("author.name"). A list matches if any of its elements does. A value whose type differs from the condition's never
matches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chamfer.core.artifact import Artifact, ArtifactWriter
from chamfer.core.errors import InvalidInput
from chamfer.core.types import Array, Bool
from chamfer.indexing.collection.arrow_files import read_batches

Value = str | float | bool
_MOST_CONDITIONS = 256
_DEEPEST = 16
_BOUNDS = ("gt", "gte", "lt", "lte")


@dataclass(frozen=True, slots=True)
class Equals:
    field: str
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of one type: numbers or strings. Strings order ISO dates correctly."""

    field: str
    gt: float | str | None = None
    gte: float | str | None = None
    lt: float | str | None = None
    lte: float | str | None = None


@dataclass(frozen=True, slots=True)
class Exists:
    field: str


@dataclass(frozen=True, slots=True)
class And:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    condition: Condition


Condition = Equals | In | Range | Exists | And | Or | Not


def parse_condition(value: Any) -> Condition:
    """The condition that a JSON value describes; InvalidInput names the invalid part (/filter/and/0)."""
    budget = [_MOST_CONDITIONS]
    return _parse(value, "/filter", budget, 0)


class FieldTable:
    """The value tables of one segment: for each field and type, the sorted values with their rows."""

    def __init__(self, artifact: Artifact, n_rows: int) -> None:
        self._n_rows = n_rows
        self._spans = {(e["field"], e["type"]): (e["start"], e["stop"]) for e in artifact.json("fields")}
        self._numbers = artifact.array("fields.numbers")
        self._number_rows = artifact.array("fields.number_rows")
        [strings] = read_batches(artifact, "fields.strings.arrow")
        self._strings = strings.column("value")
        self._string_rows = artifact.array("fields.string_rows")

    def mask(self, condition: Condition) -> Bool:
        """bool [N]: which rows fulfil the condition. Cost: binary searches, the matching entries, and N bytes."""
        if isinstance(condition, And):
            every: Bool = np.logical_and.reduce([self.mask(c) for c in condition.conditions])
            return every
        if isinstance(condition, Or):
            some: Bool = np.logical_or.reduce([self.mask(c) for c in condition.conditions])
            return some
        if isinstance(condition, Not):
            return ~self.mask(condition.condition)
        selected = np.zeros(self._n_rows, dtype=bool)
        for rows in self._matches(condition):
            selected[rows] = True
        return selected

    def names(self) -> list[str]:
        return sorted({field for field, _ in self._spans})

    def _matches(self, condition: Equals | In | Range | Exists) -> Iterator[Array]:
        if isinstance(condition, Exists):
            for (field, kind), (start, stop) in self._spans.items():
                if field == condition.field:
                    yield self._rows(kind)[start:stop]
        elif isinstance(condition, Range):
            yield self._between(condition)
        else:
            values = (condition.value,) if isinstance(condition, Equals) else condition.values
            for value in values:
                kind = _kind(value)
                start, stop = self._spans.get((condition.field, kind), (0, 0))
                column = self._column(kind)
                low = bisect_left(column, value, start, stop)
                yield self._rows(kind)[low : bisect_right(column, value, low, stop)]

    def _between(self, condition: Range) -> Array:
        bounds = [b for b in (condition.gt, condition.gte, condition.lt, condition.lte) if b is not None]
        kind = _kind(bounds[0])
        start, stop = self._spans.get((condition.field, kind), (0, 0))
        column = self._column(kind)
        low, high = start, stop
        if condition.gte is not None:
            low = max(low, bisect_left(column, condition.gte, start, stop))
        if condition.gt is not None:
            low = max(low, bisect_right(column, condition.gt, start, stop))
        if condition.lt is not None:
            high = min(high, bisect_left(column, condition.lt, start, stop))
        if condition.lte is not None:
            high = min(high, bisect_right(column, condition.lte, start, stop))
        return self._rows(kind)[low:high]

    def _column(self, kind: str) -> Sequence[Any]:
        return _ArrowStrings(self._strings) if kind == "string" else self._numbers  # type: ignore[return-value]  # an array bisects like a sequence

    def _rows(self, kind: str) -> Array:
        return self._string_rows if kind == "string" else self._number_rows


class _ArrowStrings:
    """Adapts an Arrow column to the sequence that bisect expects."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> Any:
        return self._column[index].as_py()


def write_fields(writer: ArtifactWriter, entries: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Writes the value tables of (row, metadata) pairs."""
    tables: dict[tuple[str, str], list[tuple[Any, int]]] = {}
    for row, metadata in entries:
        for field, value in set(_flat(metadata, "")):
            tables.setdefault((field, _kind(value)), []).append((value, row))
    spans: list[dict[str, Any]] = []
    numbers: list[float] = []
    strings: list[str] = []
    number_rows: list[int] = []
    string_rows: list[int] = []
    for field, kind in sorted(tables):
        pairs = sorted(tables[field, kind])
        values: list[Any] = strings if kind == "string" else numbers
        rows = string_rows if kind == "string" else number_rows
        spans.append({"field": field, "type": kind, "start": len(values), "stop": len(values) + len(pairs)})
        values += [value for value, _ in pairs]
        rows += [row for _, row in pairs]
    writer.add_json("fields", spans)
    writer.add_array("fields.numbers", np.array(numbers, dtype=np.float64))
    writer.add_array("fields.number_rows", np.array(number_rows, dtype=np.int32))
    writer.add_array("fields.string_rows", np.array(string_rows, dtype=np.int32))
    batch = pa.record_batch([pa.array(strings, pa.large_string())], names=["value"])
    with pa.OSFile(str(writer.path("fields.strings.arrow")), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)


def _flat(value: Any, field: str) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _flat(inner, field)
    elif value is not None:
        yield field, value


def _kind(value: Any) -> str:
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _parse(value: Any, pointer: str, budget: list[int], depth: int) -> Condition:
    budget[0] -= 1
    if budget[0] < 0 or depth > _DEEPEST:
        raise InvalidInput(
            f"{pointer}: the filter has more than {_MOST_CONDITIONS} conditions, or is nested deeper than {_DEEPEST}"
        )
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f'{pointer} is {type(value).__name__}, expected a condition such as {{"field": "year", "gte": 1990}}'
        )
    keys = set(value)
    if keys == {"not"}:
        return Not(_parse(value["not"], f"{pointer}/not", budget, depth + 1))
    for name, combine in (("and", And), ("or", Or)):
        if keys == {name}:
            inner = value[name]
            if not isinstance(inner, list) or not inner:
                raise InvalidInput(
                    f"{pointer}/{name} is {inner!r:.60}, expected a list of conditions that is not empty"
                )
            return combine(tuple(_parse(v, f"{pointer}/{name}/{i}", budget, depth + 1) for i, v in enumerate(inner)))
    return _parse_field(value, keys, pointer)


def _parse_field(value: Mapping[str, Any], keys: set[str], pointer: str) -> Condition:
    field = value.get("field")
    if not isinstance(field, str) or not field:
        raise InvalidInput(f"{pointer} has the keys {sorted(keys)}, expected and, or, not, or a field with its test")
    tests = keys - {"field"}
    if tests == {"equals"}:
        return Equals(field, _scalar(value["equals"], f"{pointer}/equals"))
    if tests == {"in"}:
        listed = value["in"]
        if not isinstance(listed, list) or len(listed) > 10_000:
            raise InvalidInput(f"{pointer}/in is {listed!r:.60}, expected a list of at most 10,000 values")
        return In(field, tuple(_scalar(v, f"{pointer}/in/{i}") for i, v in enumerate(listed)))
    if tests == {"exists"} and isinstance(value["exists"], bool):
        return Exists(field) if value["exists"] else Not(Exists(field))
    if tests and tests <= set(_BOUNDS):
        bounds = {name: _scalar(value[name], f"{pointer}/{name}") for name in tests}
        kinds = {_kind(bound) for bound in bounds.values()}
        if len(kinds) > 1 or kinds == {"boolean"}:
            raise InvalidInput(
                f"{pointer}: the bounds {bounds} are of different types, or booleans; expected all numbers or all "
                "strings"
            )
        return Range(field, **bounds)
    raise InvalidInput(
        f"{pointer} tests field {field!r} with {sorted(tests)}; expected equals, in, exists or {', '.join(_BOUNDS)}"
    )


def _scalar(value: Any, pointer: str) -> Value:
    if isinstance(value, str | bool | int | float) and value == value:
        return value
    raise InvalidInput(f"{pointer} is {value!r:.60}, expected a string, number or boolean")
