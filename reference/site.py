"""mkdocs hooks: the pages that are not files below docs/.

README, ARCHITECTURE, CHANGELOG and CONTRIBUTING are at the top of the repository, where people look for them. The site
has them as pages; links between them and docs/ are rewritten. The pages of the Python reference are one per package,
written from the tree, so that a module that is moved or added needs no edit here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

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
                entries[-1] = {"Python": [f"{PYTHON}/index.md", *({_short(name): _page(name)} for name in packages())]}
            if title == "Concepts":
                entries[-1] = {"Decisions": ["adr/index.md", *(f"adr/{path.name}" for path in decisions())]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for source, page in TOP_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_site_links(text)))
    files.append(File.generated(config, f"{PYTHON}/index.md", content=_index()))
    for name, modules in packages().items():
        files.append(File.generated(config, _page(name), content=_package(name, modules)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Leads the links of a page below docs/ to pages at the top of the repository to their place on the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        top = posixpath.normpath(posixpath.join(folder, match[1])).removeprefix("../")
        target = posixpath.relpath(TOP_PAGES[top], folder or ".") if top in TOP_PAGES else match[1]
        return f"]({target}{match[2] or ''})"

    return LINK.sub(moved, markdown)


def with_site_links(text: str) -> str:
    """The links of a page at the top of the repository, as the site has them."""

    def moved(match: re.Match[str]) -> str:
        target = TOP_PAGES.get(match[1], match[1].removeprefix("docs/"))
        target = f"{target}index.md" if target.endswith("/") else target
        return f"]({target}{match[2] or ''})"

    return LINK.sub(moved, text)


def packages() -> dict[str, list[str]]:
    """Package -> its public modules, in the order of the tree; private modules and the command line are left out."""
    modules: dict[str, list[str]] = {}
    for module in _modules(SOURCE / "chamfer", "chamfer"):
        modules.setdefault(module.rpartition(".")[0] if module != "chamfer" else module, []).append(module)
    return dict(sorted(modules.items()))


def decisions() -> list[Path]:
    return sorted(path for path in (ROOT / "docs" / "adr").glob("*.md") if path.name != "index.md")


def _modules(folder: Path, name: str) -> Iterator[str]:
    """Dotted names of the public modules below a folder."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_") or path.stem in PRIVATE:
            continue
        if path.is_dir() and (path / "__init__.py").exists():
            yield from _modules(path, f"{name}.{path.name}")
        elif path.suffix == ".py":
            yield f"{name}.{path.stem}"


def _short(package: str) -> str:
    """The name without `chamfer.`, so that it fits into the navigation."""
    return package.removeprefix("chamfer.")


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
