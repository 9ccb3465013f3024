"""Binds a work directory to one run; checkpoints are resumed only by the run that wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import fingerprint, weights_digest
from chamfer.models.networks.transformer import folder_of
from chamfer.models.training.data.groups import Group
from chamfer.models.training.loop.recipe import Recipe

CLAIM = "run.json"
# Keys that a resumed run may change: they do not affect the result, or are identified by content below.
_MAY_CHANGE = (
    *("out", "init_from", "backbone", "data.groups", "data.documents", "data.token_vectors"),
    *("fit.threads", "fit.save_steps", "fit.max_steps", "fit.micro_batch_tokens"),
)


def claim(work: Path, recipe: Recipe, groups: Sequence[Group], documents: Mapping[str, str]) -> None:
    """Writes the identity of a run into its work directory.

    Data and weights are identified by content: the groups with their texts, the weights of init_from and of the
    backbone. InvalidInput, naming what differs, if the directory belongs to another run.
    """
    path, identity = work / CLAIM, _identity(recipe, groups, documents)
    if path.is_file():
        previous = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in identity.keys() | previous.keys() if identity.get(key) != previous.get(key))
        if differing:
            changes = "; ".join(f"{key} was {previous.get(key)!r}, is {identity.get(key)!r}" for key in differing)
            raise InvalidInput(f"{work} belongs to another run ({changes}); remove it, or give this run another --work")
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")  # with several processes each writes the same content
    temporary.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def _identity(recipe: Recipe, groups: Sequence[Group], documents: Mapping[str, str]) -> dict[str, Any]:
    """Every key of the recipe that affects the result, and digests of what the run reads."""
    keys = dict(_flat(asdict(recipe)))
    for name in _MAY_CHANGE:
        keys.pop(name, None)
    texts = sorted({doc_id for group in groups for doc_id in group.doc_ids})
    keys["groups"] = digest_of(
        *([g.query_id, g.query, list(g.doc_ids), [float(v) for v in g.labels], _numbers(g.teachers)] for g in groups),
        [[doc_id, documents[doc_id]] for doc_id in texts],
    )
    keys["backbone weights"] = weights_digest(folder_of(recipe.backbone))
    keys["initial weights"] = None if recipe.init_from is None else fingerprint(recipe.init_from)
    return keys


def _numbers(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [float(value) for value in values] for name, values in columns.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            plain = value if isinstance(value, int | float | bool | str | None) else _plain(value)
            pairs.append((prefix + name, plain))
    return pairs


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else str(value)
