"""Writes docs/reference/ from the code.

    python -m reference [--check]

--check writes nothing and exits with 1 if a page differs from what the code says now, naming it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from reference.command_line import command_line_page
from reference.configuration import recipes_page, settings_page
from reference.rest import rest_page

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES: Mapping[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/recipes.md": recipes_page,
    "reference/command-line.md": command_line_page,
    "reference/rest.md": rest_page,
}


def stale(docs: Path = DOCS) -> dict[str, str]:
    """Page -> its text, for every page whose file differs from what the code gives now."""
    pages = {name: page() for name, page in PAGES.items()}
    return {name: text for name, text in pages.items() if not _holds(docs / name, text)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    differing = stale()
    for name, text in differing.items():
        if not check:
            (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
            (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name} {'is stale; run python -m reference' if check else 'written'}")
    return 1 if check and differing else 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
