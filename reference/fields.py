"""Every key of the configuration dataclasses, with its values, its default and its description.

Descriptions are kept in descriptions.toml: one table per dataclass, one sentence per field. A subclass that declares
a field again inherits the sentence unless it has one of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DESCRIPTIONS = Path(__file__).with_name("descriptions.toml")
NAMES: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "path",
    Any: "any value",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a TOML file: its dotted name, and the field that it fills."""

    name: str
    owner: type[Any]
    field: str
    values: str
    default: str

    @property
    def description(self) -> str:
        """The sentence of the most derived class that has one; empty if none has."""
        sentences = descriptions()
        for cls in self.owner.__mro__:
            if sentence := sentences.get(cls.__name__, {}).get(self.field):
                return sentence
        return ""


@cache
def descriptions() -> dict[str, dict[str, str]]:
    """Class name -> field -> sentence, from descriptions.toml."""
    return tomllib.loads(DESCRIPTIONS.read_text(encoding="utf-8"))


def keys_of(cls: type[Any], prefix: str = "") -> Iterator[Key]:
    """The keys that fill `cls`, those of nested dataclasses included; tables by name use NAME for the name."""
    for each in fields(cls):
        yield from key_of(cls, each, prefix)


def key_of(cls: type[Any], each: Field[Any], prefix: str = "") -> Iterator[Key]:
    """The key of one field, or the keys below it where the field is a dataclass or a table of them."""
    hint = get_type_hints(cls)[each.name]
    name = prefix + each.name
    if isinstance(hint, type) and is_dataclass(hint):
        yield from keys_of(hint, f"{name}.")
        return
    yield Key(name, cls, each.name, shown_type(hint), shown_default(each))
    if (inner := table_of(hint)) is not None:
        yield from keys_of(inner, f"{name}.NAME.")


def table_of(hint: Any) -> type[Any] | None:
    """The dataclass X of a hint dict[str, X]; None for any other hint."""
    arguments = get_args(hint)
    if get_origin(hint) is dict and isinstance(arguments[1], type) and is_dataclass(arguments[1]):
        return arguments[1]
    return None


def shown_type(hint: Any) -> str:
    """A type in the words of a TOML file: `integer`, a list of its choices, `list of strings`, `table`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(shown_type(each) for each in arguments if each is not NoneType)
    if origin is tuple:
        return f"list of {shown_type(arguments[0])}s"
    if hint in NAMES:
        return NAMES[hint]
    return "table"


def shown_default(each: Field[Any]) -> str:
    """The default as the file would have it; `required` where there is none, `unset` for None."""
    value = each.default
    if value is MISSING:
        if each.default_factory is MISSING:
            return "required"
        value = each.default_factory()
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str | int | float):
        return f"`{value}`" if value != "" else "empty"
    if isinstance(value, tuple) and value:
        return "`" + ", ".join(str(each) or chr(34) * 2 for each in value) + "`"
    return "none"
