"""One tree of settings from one TOML file and the CHAMFER_* environment. The only reader of the environment.

Each branch is the frozen dataclass that stands beside the code it steers. `[service.batching] max_batch = 32` in the
file is `CHAMFER_SERVICE__BATCHING__MAX_BATCH=32` in the environment, which wins. CHAMFER_CONFIG names the file.
An unknown key fails with the nearest name.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.indexing.build.builder import BuildConfig
from chamfer.indexing.families.registry import FAMILIES
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.rerankers.remote import RemoteConfig
from chamfer.models.training.loop.recipe import Recipe, refuse_renamed_keys
from chamfer.service.http.app import ServerConfig
from chamfer.service.search.plans import Plan

T = TypeVar("T")
PREFIX = "CHAMFER_"
CONFIG_VARIABLE = "CHAMFER_CONFIG"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which models answer: names from the catalogue, hub names or local paths; `remotes` are servers by name."""

    encoder: str = "mini"
    rerankers: tuple[str, ...] = ()
    device: DeviceConfig = field(default_factory=DeviceConfig)
    reranker_device: DeviceConfig = field(default_factory=DeviceConfig)
    remotes: dict[str, RemoteConfig] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. `collections` maps served names to directories, `plans` adds to the presets."""

    models: ModelSettings = field(default_factory=ModelSettings)
    build: BuildConfig = field(default_factory=BuildConfig)
    service: ServerConfig = field(default_factory=ServerConfig)
    collections: dict[str, Path] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from `file` (else CHAMFER_CONFIG, else none), the environment (else the process's own) and overrides.

    Later ones win; overrides are dotted (`build.channels`). Converted models are kept in the user's cache directory
    unless `models.device.cache_dir` says otherwise.

    Raises NotFound for a missing file, InvalidInput for a key or value that does not fit, naming its place.
    """
    variables = dict(os.environ if environment is None else environment)
    named = variables.pop(CONFIG_VARIABLE, "")
    source = file or (Path(named) if named else None)
    tree: dict[str, Any] = {}
    if source is not None:
        tree = _read_toml(source)
    for name, text in sorted(variables.items()):
        if name.startswith(PREFIX):
            _place(tree, name, name.removeprefix(PREFIX).lower().split("__"), text)
    for dotted, text in (overrides or {}).items():
        _place(tree, dotted, dotted.split("."), text)
    settings = fill(Settings, tree, "")
    for branch in ("device", "reranker_device"):
        if "cache_dir" not in tree.get("models", {}).get(branch, {}):
            device = replace(getattr(settings.models, branch), cache_dir=_cache_directory(variables))
            settings = replace(settings, models=replace(settings.models, **{branch: device}))
    return settings


def load_recipe(file: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A training recipe from TOML, as the dataclass of its `job`. Overrides have dotted keys and win.

    Raises NotFound for a missing file, InvalidInput for an unknown job or for a key or value that does not fit; a key
    that was renamed fails with its present name.
    """
    from chamfer.models.training.jobs.registry import recipe_type  # imports torch

    tree = _read_toml(file, "recipe")
    for dotted, text in (overrides or {}).items():
        _place(tree, dotted, dotted.split("."), text)
    job = tree.get("job")
    if not isinstance(job, str):
        raise InvalidInput(f'recipe {file} has no key job; expected job = "NAME" at its beginning')
    refuse_renamed_keys(recipe_type(job), tree)
    return fill(recipe_type(job), tree, "")


def fill(cls: type[T], tree: Mapping[str, Any], place: str) -> T:
    """The dataclass `cls` from nested mappings; `place` is where we are, for messages."""
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]  # every caller passes a dataclass
    values: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{place}.{key}" if place else key
        if key not in known:
            raise InvalidInput(f"unknown setting {where!r}{_nearest(key, known)}")
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint):
            values[key] = fill(hint, _table(value, where, hint), where)
        elif _is_table_of_dataclasses(hint) and isinstance(value, Mapping):
            inner = hint.__args__[1]
            values[key] = {
                name: fill(inner, _table(own, f"{where}.{name}", inner), f"{where}.{name}")
                for name, own in value.items()
            }
        else:
            values[key] = _validate(hint, value, where)
    missing = [n for n, f in known.items() if n not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise InvalidInput(f"settings missing in {place or 'the file'}: {', '.join(missing)}")
    return cls(**values)


def _is_table_of_dataclasses(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is dict and is_dataclass(hint.__args__[1])


def _table(value: Any, where: str, cls: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"setting {where!r} is {value!r}, expected a table of {sorted(_names(cls))}")
    return value


def describe(settings: Settings) -> dict[str, Any]:
    """The resolved tree as plain values without secrets, for logs and manifests."""
    plain = asdict(settings)
    for remote in plain["models"]["remotes"].values():
        remote["api_key"] = "***" if remote["api_key"] else ""
    plain["plans"] = {name: plan.model_dump(mode="json") for name, plan in settings.plans.items()}
    return plain


def _read_toml(path: Path, what: str = "settings file") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        named = f" ({CONFIG_VARIABLE} or --config names it)" if what == "settings file" else ""
        raise NotFound(f"{what} {path} does not exist{named}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{what} {path} is not valid TOML: {error}") from error


def _cache_directory(variables: Mapping[str, str]) -> Path:
    """The XDG cache directory (freedesktop.org, XDG Base Directory Specification)."""
    home = variables.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path(variables.get("HOME", "~")).expanduser() / ".cache") / "chamfer"


def _place(tree: dict[str, Any], name: str, path: list[str], text: str) -> None:
    """CHAMFER_A__B=text becomes tree[a][b]."""
    *branches, leaf = path
    at = tree
    for branch in branches:
        below = at.setdefault(branch, {})
        if not isinstance(below, dict):
            raise InvalidInput(f"{name} goes below {branch!r}, which is a value, not a table")
        at = below
    at[leaf] = text


def _validate(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) and getattr(hint, "__origin__", None) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = "".join(f".{part}" for part in first["loc"])
        raise InvalidInput(f"setting {where + inner!r} is {first['input']!r}: {first['msg']}") from error


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    if key in FAMILIES:
        return f"; a channel's parameters stand in [build.parameters.{key}]"
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)]
