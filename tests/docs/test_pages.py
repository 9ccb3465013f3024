"""The documentation: links and paths exist, and the generated pages are up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

from chamfer.indexing.families.registry import FAMILIES
from chamfer.models.training.jobs.registry import JOBS
from chamfer.settings import Settings
from reference.__main__ import PAGES, stale
from reference.configuration import channel_keys, recipe_keys, settings_keys
from reference.docstrings import with_lists, without_links
from reference.fields import Key, descriptions, keys_of
from reference.links import broken_links, slug
from reference.site import packages, with_site_links

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")]
FOLDERS = ("src", "service", "indexing", "models", "recipes", "benchmarks", "reference", "tests", "deploy", "docs")
NAMED_PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
PROGRAM = re.compile(r"python -m ((?:benchmarks|recipes|reference)(?:\.\w+)*)")
HISTORY = {"CHANGELOG.md", "experiments.md", "benchmarks.md"}


def pages() -> list[Path]:
    return TOP + sorted((ROOT / "docs").rglob("*.md"))


def current_pages() -> list[Path]:
    """Pages that describe the present state; the others may name files that no longer exist."""
    return [page for page in pages() if page.name not in HISTORY]


def configuration_keys() -> Iterator[Key]:
    recipes = (recipe_keys(recipe) for recipe, _ in JOBS.values())
    return chain(settings_keys(), channel_keys(), *recipes)


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_page_and_an_anchor(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# Other\n\n## What's here?\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#whats-here) [b](none.md) [c](other.md#gone)\n\n```\n[d](code.md)\n```\n")
    assert list(broken_links(page)) == ["none.md", "other.md#gone"]


def test_anchors_are_those_of_the_site() -> None:
    assert slug("`mini-cross` in fewer numbers: SVD") == "mini-cross-in-fewer-numbers-svd"
    assert slug("POST /v1/collections/{name}/search") == "post-v1collectionsnamesearch"


@pytest.mark.parametrize("page", current_pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(NAMED_PATH.findall(page.read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_that_a_page_runs_exists(page: Path) -> None:
    programs = set(PROGRAM.findall(page.read_text(encoding="utf-8")))
    assert {name for name in programs if find_spec(name) is None} == set()


def test_every_key_of_the_configuration_has_a_description() -> None:
    assert sorted({key.name for key in configuration_keys() if not key.description}) == []


def test_every_description_belongs_to_a_key() -> None:
    used = {
        (cls.__name__, key.field)
        for key in configuration_keys()
        for cls in key.owner.__mro__
        if key.field in descriptions().get(cls.__name__, {})
    }
    written = {(name, field) for name, fields in descriptions().items() for field in fields}
    assert written - used == set()


def test_the_generated_pages_are_up_to_date() -> None:
    assert sorted(stale()) == [], "run python -m reference"


def test_a_page_that_differs_is_reported_as_stale(tmp_path: Path) -> None:
    assert sorted(stale(tmp_path)) == sorted(PAGES)


def test_every_setting_and_its_default_are_on_the_settings_page() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text, flags=re.MULTILINE))
    for key in keys_of(Settings):
        assert documented[key.name] == key.default
    assert documented["service.port"] == "`8000`"
    assert documented["models.device.allow_download"] == "`false`"
    assert documented["build.channels"] == "`dense, multivector, lexical`"


def test_every_parameter_of_every_channel_is_on_the_settings_page() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    for name, (_, config) in FAMILIES.items():
        for key in keys_of(config, f"{name}."):
            assert f"| `{key.name}` | {key.default} |" in text


def test_the_site_has_a_python_page_for_every_package() -> None:
    modules_by_package = packages()
    assert {
        "chamfer",
        "chamfer.core",
        "chamfer.service.search",
        "chamfer.indexing.families",
    } <= modules_by_package.keys()
    assert "chamfer.core.types" in modules_by_package["chamfer.core"]
    assert not any(
        module.rpartition(".")[2].startswith("_") for modules in modules_by_package.values() for module in modules
    )


def test_links_of_the_pages_at_the_top_are_moved_with_them() -> None:
    text = "[a](docs/tutorial.md) [b](ARCHITECTURE.md#x) [c](https://example.org) ![d](docs/flow.svg)"
    assert with_site_links(text) == ("[a](tutorial.md) [b](architecture.md#x) [c](https://example.org) ![d](flow.svg)")


def test_aligned_lists_in_docstrings_become_markdown_lists() -> None:
    text = "What it is.\n\nseed      of all draws,\n          every one\nfill      or not\n\nMore."
    assert with_lists(text) == "What it is.\n\n- `seed`: of all draws,\n  every one\n- `fill`: or not\n\nMore."


def test_shapes_in_docstrings_are_not_read_as_links() -> None:
    assert without_links("f32 [B][K] and `x[0]`") == "f32 \\[B]\\[K] and `x[0]`"
