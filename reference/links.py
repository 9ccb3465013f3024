"""Links of Markdown pages: which of them lead nowhere.

Anchors are made the way Python-Markdown (the site) and GitHub make them from headings, which agree for plain headings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
ELSEWHERE = ("http://", "https://", "mailto:")


def broken_links(page: Path) -> Iterator[str]:
    """The targets of relative links on a page whose file or anchor does not exist."""
    for target in LINK.findall(_prose(page)):
        if target.startswith(ELSEWHERE):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            yield target


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of the headings of a page."""
    return frozenset(slug(heading) for heading in HEADING.findall(_prose(page)))


def slug(heading: str) -> str:
    """The anchor of a heading: lower case, without punctuation, words joined by hyphens."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))
