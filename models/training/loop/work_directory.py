"""Whose a work folder is: checkpoints are gone on with by the run that made them and by no other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import describe, fingerprint, weights_digest
from chamfer.models.networks.transformer import folder_of
from chamfer.models.training.data.groups import Group
from chamfer.models.training.loop.recipe import Recipe

CLAIM = "run.json"
_FREE = (
    "out",
    "start",
    "backbone",
    "fit.threads",
    "fit.save_every",
    "fit.stop",
    "fit.micro_tokens",
)  # of a resumed run
_NOT_BY_PATH = ("data.groups", "data.documents", "data.states")


def claim(work: Path, recipe: Recipe, groups: Sequence[Group], documents: Mapping[str, str]) -> None:
    """Writes what decides a run into its work folder; InvalidInput, naming what differs, where another run's is there.

    Files are known by what they hold: `groups` with their texts, the weights of `start` and of the backbone.
    """
    path, own = work / CLAIM, _identity(recipe, groups, documents)
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        differs = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
        if differs:
            told = "; ".join(f"{key} was {found.get(key)!r}, is {own.get(key)!r}" for key in differs)
            raise InvalidInput(f"{work} belongs to another run ({told}); remove it, or give this run another --work")
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")  # of several processes each writes its own, all the same
    temporary.write_text(json.dumps(own, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def _identity(recipe: Recipe, groups: Sequence[Group], documents: Mapping[str, str]) -> dict[str, Any]:
    """Every key of the recipe that decides what is learnt, and digests of what it reads."""
    keys = dict(_flat(asdict(recipe)))
    for name in (*_FREE, *_NOT_BY_PATH):
        keys.pop(name, None)
    texts = sorted({doc_id for group in groups for doc_id in group.doc_ids})
    keys["groups"] = digest_of(
        *([g.query_id, g.query, list(g.doc_ids), [float(v) for v in g.labels], _numbers(g.teachers)] for g in groups),
        [[doc_id, documents[doc_id]] for doc_id in texts],
    )
    keys["backbone weights"] = weights_digest(folder_of(recipe.backbone))
    keys["start weights"] = None if recipe.start is None else fingerprint(recipe.start, describe(recipe.start))
    return keys


def _numbers(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [float(value) for value in values] for name, values in columns.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            out += _flat(value, f"{prefix}{name}.")
        else:
            out.append((prefix + name, value if isinstance(value, int | float | bool | str | None) else _plain(value)))
    return out


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else str(value)
