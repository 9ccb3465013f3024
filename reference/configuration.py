"""The reference pages of the settings file and of training recipes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from chamfer.indexing.families.registry import FAMILIES
from chamfer.models.training.jobs.registry import JOBS
from chamfer.models.training.loop.recipe import Recipe
from chamfer.settings import Settings
from reference.fields import Key, key_of, keys_of

NOTICE = "<!-- Written by `python -m reference` from the code and reference/descriptions.toml. Do not edit. -->\n"

SETTINGS_HEAD = """# Settings

Settings come from one TOML file, named by `--config FILE` or `CHAMFER_CONFIG`, and from the environment. An environment
variable wins over the file, and a command line option wins over both. A key in the file is a variable in the
environment: `[service.batching] max_batch = 32` is `CHAMFER_SERVICE__BATCHING__MAX_BATCH=32`. An unknown key is
refused; the error names the nearest known key.

```toml
[models]
encoder = "mini"

[service]
port = 8080

[collections]                    # served name = directory
tales = "var/tales"

[plans.quick.channels]           # a named plan, beside the presets fast, balanced and best
lexical = { depth = 50 }
```
"""

CHANNELS_HEAD = """## Channel parameters

Parameters of a channel are set when a collection is built, in a table of their own: `[build.parameters.lexical]` with
`k1 = 1.2`. They become part of the collection's snapshots.
"""

RECIPES_HEAD = """# Recipe keys

A recipe is a TOML file for [`chamfer train`](../training.md). Its first key, `job`, chooses the job and with it the
keys that may follow. `--set fit.batch_size=64` overrides a key on the command line. An unknown key is refused; the
error names the nearest known key.
"""

SECTIONS = {"models": "Models", "build": "Building", "service": "Service"}


def settings_keys() -> Iterator[Key]:
    """Every key of the settings file except the parameters of channels."""
    return keys_of(Settings)


def channel_keys() -> Iterator[Key]:
    """Every parameter of every family, as CHANNEL.PARAMETER."""
    for name, (_, config) in FAMILIES.items():
        yield from keys_of(config, f"{name}.")


def recipe_keys(recipe: type[Any], without: type[Any] | None = None) -> Iterator[Key]:
    """The keys of a recipe; given `without`, only those that it adds to that class or gives another default."""
    inherited = {(key.name, key.default) for key in keys_of(without)} if without else set()
    for each in fields(recipe):
        yield from (key for key in key_of(recipe, each) if (key.name, key.default) not in inherited)


def settings_page() -> str:
    """docs/reference/settings.md."""
    keys = list(settings_keys())
    parts = [NOTICE, SETTINGS_HEAD]
    for section, title in SECTIONS.items():
        parts += [f"## {title}\n", table("setting", (key for key in keys if key.name.startswith(f"{section}.")))]
        if section == "build":
            parts += [CHANNELS_HEAD, table("parameter", channel_keys())]
    rest = [key for key in keys if key.name.partition(".")[0] not in SECTIONS]
    return "\n".join([*parts, "## Collections and plans\n", table("setting", rest)])


def recipes_page() -> str:
    """docs/reference/recipes.md."""
    parts = [NOTICE, RECIPES_HEAD, "## Every job\n", table("key", recipe_keys(Recipe))]
    for job, (recipe, _) in JOBS.items():
        parent = recipe.__mro__[1]
        parts.append(f"## {job}\n")
        parts.append(f"{about(recipe)}\n")
        inherited = next((name for name, (other, _) in JOBS.items() if other is parent), None)
        also = f", those of [{inherited}](#{inherited})" if inherited else ""
        parts.append(f"Beside the keys of [every job](#every-job){also}:\n")
        parts.append(table("key", recipe_keys(recipe, without=parent)))
    return "\n".join(parts)


def about(recipe: type[Any]) -> str:
    """The first paragraph of the module that defines a job: what it trains."""
    module = inspect.getmodule(recipe)
    text = inspect.getdoc(module) or ""
    return " ".join(text.split("\n\n")[0].split())


def table(heading: str, keys: Iterable[Key]) -> str:
    """A Markdown table with one line per key."""
    lines = [f"| {heading} | default | values | meaning |", "| --- | --- | --- | --- |"]
    for key in keys:
        meaning = key.description.replace("|", "\\|")
        lines.append(f"| `{key.name}` | {key.default} | {key.values} | {meaning} |")
    return "\n".join([*lines, ""])
