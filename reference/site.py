"""mkdocs hooks: the pages that are not files below docs/.

README, ARCHITECTURE, CHANGELOG and CONTRIBUTING stand at the top of the repository, where people look for them; the site
has them as pages, with their links into docs/ made relative to it. The pages of the Python reference are one per package,
written from the tree, so that a module that is moved or added needs no edit here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
TOP_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
PYTHON = "reference/python"
PRIVATE = {"__main__", "demo", "cli"}
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Adds the pages of the Python reference to the navigation, and the decision records below Decisions."""
    for section in config.nav:
        for title, entries in section.items():
            if title == "Reference":
                entries[-1] = {"Python": [f"{PYTHON}/index.md", *({name: _page(name)} for name in packages())]}
            if title == "Concepts":
                entries[-1] = {"Decisions": ["adr/index.md", *(f"adr/{path.name}" for path in decisions())]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    for source, page in TOP_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_site_links(text)))
    files.append(File.generated(config, f"{PYTHON}/index.md", content=_index()))
    for name, modules in packages().items():
        files.append(File.generated(config, _page(name), content=_package(name, modules)))
    return files


def with_site_links(text: str) -> str:
    """The links of a page at the top of the repository, as the site has them."""

    def moved(match: re.Match[str]) -> str:
        target = TOP_PAGES.get(match[1], match[1].removeprefix("docs/"))
        target = f"{target}index.md" if target.endswith("/") else target
        return f"]({target}{match[2] or ''})"

    return LINK.sub(moved, text)


def packages() -> dict[str, list[str]]:
    """Package -> its public modules, in the order of the tree; private modules and the command line are left out."""
    found: dict[str, list[str]] = {}
    for module in _modules(SOURCE / "chamfer", "chamfer"):
        found.setdefault(module.rpartition(".")[0] if module != "chamfer" else module, []).append(module)
    return {package: modules for package, modules in sorted(found.items())}


def decisions() -> list[Path]:
    return sorted(path for path in (ROOT / "docs" / "adr").glob("*.md") if path.name != "index.md")


def _modules(folder: Path, name: str) -> Iterator[str]:
    """Dotted names of modules; a package counts as a module where its __init__ holds more than a docstring."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_") or path.stem in PRIVATE:
            continue
        if path.is_dir() and (path / "__init__.py").exists():
            yield from _modules(path, f"{name}.{path.name}")
        elif path.suffix == ".py":
            yield f"{name}.{path.stem}"


def _page(package: str) -> str:
    return f"{PYTHON}/{package}.md"


def _index() -> str:
    lines = [
        "# Python reference",
        "",
        "Most programs need `chamfer.build`, `chamfer.open` and the `Searcher` that both return:",
        "see [chamfer](chamfer.md). Everything else is here for those who extend Chamfer. Only what",
        "[Releases](../../releases.md) names is promised to stay.",
        "",
        "| package | modules |",
        "| --- | --- |",
    ]
    for name, modules in packages().items():
        shown = ", ".join(f"`{module.rpartition('.')[2]}`" for module in modules)
        lines.append(f"| [{name}]({name}.md) | {shown} |")
    return "\n".join([*lines, ""])


def _package(name: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules), ""])
