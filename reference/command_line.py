"""The reference page of the command line, from the typer application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

import chamfer.cli
from reference.configuration import NOTICE

HEAD = """# Command line

Data goes to standard output, messages and progress to standard error. Exit status: 0 done, 1 failed, 2 the input
cannot be used, 130 interrupted. Every command that writes can be killed and run again: it resumes where it was.
`--config FILE` names the [settings file](settings.md); without it `CHAMFER_CONFIG` does.
"""


def command_line_page() -> str:
    """docs/reference/command-line.md."""
    parts = [NOTICE, HEAD]
    for name, command in commands():
        parts.append(f"## {name}\n")
        arguments = " ".join(_metavar(each) for each in command.params if each.param_type_name == "argument")
        parts.append(f"```\n{name} {arguments} [OPTIONS]\n```\n".replace("  ", " "))
        parts.append(f"{' '.join((command.help or '').split())}\n")
        parts.append(_table(command))
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in alphabetical order, groups replaced by their commands."""
    chamfer.cli.register_commands()
    yield from _below(get_command(chamfer.cli.app), "chamfer")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for each in sorted(inner):
        yield from _below(inner[each], f"{name} {each}")


def _table(command: Any) -> str:
    lines = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for each in command.params:
        shown = _metavar(each) if each.param_type_name == "argument" else ", ".join(each.opts)
        default = "required" if each.required else _default(each.default)
        meaning = " ".join((each.help or "").split()).replace("|", "\\|")
        lines.append(f"| `{shown}` | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _metavar(argument: Any) -> str:
    name = argument.name.upper()
    several = "..." if argument.nargs != 1 else ""
    return f"{name}{several}" if argument.required else f"[{name}{several}]"


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    if value is True or value is False:
        return "on" if value else "off"
    return f"`{value}`"
