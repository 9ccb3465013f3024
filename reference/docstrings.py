"""Docstrings as Markdown has to have them.

Docstrings of this project list fields as

    fill      whether an empty cell takes the nearest token
    seed      of all draws;
              continued here

which Markdown would join into one paragraph; they become a list. Shapes such as [B][K] would be read as links; their
brackets are escaped outside code.
"""

from __future__ import annotations

import re

ENTRY = re.compile(r"^([\w.*,\[\] ]*\w[\w.*\]]*) {2,}(\S.*)$")
CODE = re.compile(r"(`[^`]*`)")


def as_markdown(text: str) -> str:
    """A docstring as Markdown."""
    return without_links(with_lists(text))


def with_lists(text: str) -> str:
    """The text with each run of aligned entries as a Markdown list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if entry := ENTRY.match(line):
            if not inside and lines and lines[-1]:
                lines.append("")
            lines.append(f"- `{entry[1].strip()}`: {entry[2]}")
            inside = True
        elif inside and line.startswith("  "):
            lines.append(f"  {line.strip()}")
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)


def without_links(text: str) -> str:
    """The text with its square brackets escaped, except in code."""
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else part.replace("[", "\\[") for part in parts)
