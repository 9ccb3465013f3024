"""The index families by name. A new family is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, get_type_hints

from chamfer.core.errors import InvalidInput
from chamfer.indexing.families.cur.family import CurConfig, CurFamily
from chamfer.indexing.families.dense import DenseConfig, DenseFamily
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.fde.encoder import FdeConfig
from chamfer.indexing.families.fde.family import FdeFamily
from chamfer.indexing.families.inverted.bm25 import LexicalConfig, LexicalFamily
from chamfer.indexing.families.inverted.learned_sparse import SparseConfig, SparseFamily
from chamfer.indexing.families.lemur import LemurConfig, LemurFamily
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily

FAMILIES: dict[str, tuple[Callable[[Any], Family], type[Any]]] = {
    "dense": (DenseFamily, DenseConfig),
    "multivector": (MultivectorFamily, MultivectorConfig),
    "fde": (FdeFamily, FdeConfig),
    "lemur": (LemurFamily, LemurConfig),
    "cur": (CurFamily, CurConfig),
    "lexical": (LexicalFamily, LexicalConfig),
    "sparse": (SparseFamily, SparseConfig),
}


def make_family(name: str, params: Mapping[str, Any] | None = None) -> Family:
    """The family of this name with these parameters. InvalidInput suggests the most similar name."""
    if name not in FAMILIES:
        raise InvalidInput(f"unknown index family {name!r}{_nearest(name, FAMILIES)}")
    family, config = FAMILIES[name]
    return family(_config(config, params or {}, name))


def _config(cls: type[Any], params: Mapping[str, Any], path: str) -> Any:
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for key, value in params.items():
        if key not in names:
            raise InvalidInput(f"unknown parameter {path}.{key}{_nearest(key, names)}")
        hint = hints[key]
        inner = isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping)
        values[key] = _config(hint, value, f"{path}.{key}") if inner else _checked(hint, value, f"{path}.{key}")
    return cls(**values)


def _checked(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, UnionType):  # X | None
        inner = next(each for each in hint.__args__ if each is not NoneType)
        return None if value is None else _checked(inner, value, path)
    choices = getattr(hint, "__args__", None)
    if choices and value not in choices:
        raise InvalidInput(f"{path} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool)):
        raise InvalidInput(f"{path} is {value!r}, expected {hint.__name__}")
    return value


def _nearest(name: str, names: Any) -> str:
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(names))}"
