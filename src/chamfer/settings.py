"""Settings from a TOML file and CHAMFER_* environment variables. Only this module reads the environment.

Each section is a frozen dataclass defined beside the code that it configures. `[service.batching] max_batch = 32` in
the file is `CHAMFER_SERVICE__BATCHING__MAX_BATCH=32` in the environment, which takes precedence. CHAMFER_CONFIG is the
path of the file. An unknown key raises an error that suggests the nearest known name.
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
from chamfer.core.home import home_directory
from chamfer.indexing.building.builder import BuildConfig
from chamfer.indexing.families.registry import FAMILIES
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.rerankers.remote import RemoteConfig
from chamfer.models.training.loop.recipe import Recipe, refuse_renamed_keys
from chamfer.service.http.config import ServerConfig
from chamfer.service.search.plans import Plan

T = TypeVar("T")
PREFIX = "CHAMFER_"
CONFIG_VARIABLE = "CHAMFER_CONFIG"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Models by catalogue name, hub name or local path; `remotes` are model servers by name."""

    encoder: str = "mini"
    rerankers: tuple[str, ...] = ()
    device: DeviceConfig = field(default_factory=DeviceConfig)
    reranker_device: DeviceConfig = field(default_factory=DeviceConfig)
    remotes: dict[str, RemoteConfig] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. `collections` maps served names to directories; `plans` adds plans to the presets."""

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
    """Settings from `file` (default: CHAMFER_CONFIG, if set), `environment` (default: the process's) and `overrides`.

    Later sources take precedence. Override keys are dotted (`build.channels`). Converted models are cached in the
    user's cache directory unless `models.device.cache_dir` is set; a user without a home directory has no cache.

    Raises NotFound for a missing file, and InvalidInput, with the dotted key, for an unknown key or invalid value.
    """
    variables = dict(os.environ if environment is None else environment)
    config_path = variables.pop(CONFIG_VARIABLE, "")
    source = file or (Path(config_path) if config_path else None)
    tree: dict[str, Any] = {}
    if source is not None:
        tree = _read_toml(source)
    for name, text in sorted(variables.items()):
        if name.startswith(PREFIX):
            _set(tree, name, name.removeprefix(PREFIX).lower().split("__"), text)
    for dotted, text in (overrides or {}).items():
        _set(tree, dotted, dotted.split("."), text)
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
        _set(tree, dotted, dotted.split("."), text)
    job = tree.get("job")
    if not isinstance(job, str):
        raise InvalidInput(f'recipe {file} has no key job; expected job = "NAME" at its beginning')
    refuse_renamed_keys(recipe_type(job), tree)
    return fill(recipe_type(job), tree, "")


def fill(cls: type[T], tree: Mapping[str, Any], prefix: str) -> T:
    """The dataclass `cls` from nested mappings; `prefix` is the dotted key of the mapping, for error messages."""
    hints = get_type_hints(cls)
    known_fields = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]  # every caller passes a dataclass
    values: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if key not in known_fields:
            raise InvalidInput(f"unknown setting {dotted!r}{_suggestion(key, known_fields)}")
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint):
            values[key] = fill(hint, _table(value, dotted, hint), dotted)
        elif _is_table_of_dataclasses(hint) and isinstance(value, Mapping):
            inner = hint.__args__[1]
            values[key] = {
                name: fill(inner, _table(entry, f"{dotted}.{name}", inner), f"{dotted}.{name}")
                for name, entry in value.items()
            }
        else:
            values[key] = _validate(hint, value, dotted)
    missing = [
        n for n, f in known_fields.items() if n not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InvalidInput(f"settings missing in {prefix or 'the file'}: {', '.join(missing)}")
    return cls(**values)


def _is_table_of_dataclasses(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is dict and is_dataclass(hint.__args__[1])


def _table(value: Any, dotted: str, cls: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"setting {dotted!r} is {value!r}, expected a table of {sorted(_names(cls))}")
    return value


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values without secrets, for logs and manifests."""
    plain = asdict(settings)
    for remote in plain["models"]["remotes"].values():
        remote["api_key"] = "***" if remote["api_key"] else ""
    plain["plans"] = {name: plan.model_dump(mode="json") for name, plan in settings.plans.items()}
    return plain


def _read_toml(path: Path, what: str = "settings file") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        source = f" (its path comes from --config or {CONFIG_VARIABLE})" if what == "settings file" else ""
        raise NotFound(f"{what} {path} does not exist{source}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{what} {path} is not valid TOML: {error}") from error


def _cache_directory(variables: Mapping[str, str]) -> Path | None:
    """The XDG cache directory (freedesktop.org, XDG Base Directory Specification).

    None without XDG_CACHE_HOME and without a home directory: converted graphs are then not cached.
    """
    if cache := variables.get("XDG_CACHE_HOME"):
        return Path(cache) / "chamfer"
    home = Path(variables["HOME"]) if variables.get("HOME") else home_directory()
    return home / ".cache" / "chamfer" if home else None


def _set(tree: dict[str, Any], name: str, path: list[str], text: str) -> None:
    """Sets tree[a][b] = text for the path [a, b]; `name` is the variable or override, for error messages."""
    *branches, leaf = path
    table = tree
    for branch in branches:
        inner = table.setdefault(branch, {})
        if not isinstance(inner, dict):
            raise InvalidInput(f"{name} sets a key of {branch!r}, which is a value, not a table")
        table = inner
    table[leaf] = text


def _validate(hint: Any, value: Any, dotted: str) -> Any:
    if isinstance(value, str) and getattr(hint, "__origin__", None) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = "".join(f".{part}" for part in first["loc"])
        raise InvalidInput(f"setting {dotted + inner!r} is {first['input']!r}: {first['msg']}") from error


def _suggestion(key: str, known_keys: Mapping[str, Any]) -> str:
    if key in FAMILIES:
        return f"; the parameters of a channel belong in [build.parameters.{key}]"
    near = get_close_matches(key, known_keys, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(sorted(known_keys))}"


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)]
