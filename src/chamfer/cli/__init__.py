"""The command line: parse arguments, call the library, print. Data goes to stdout, everything else to stderr.

Each command has a module of its name: `chamfer build` is cli/build.py.
"""

from __future__ import annotations

import errno
import sys

import typer

from chamfer.core.errors import ChamferError, InvalidInput, NotFound
from chamfer.core.version import VERSION

app = typer.Typer(
    name="chamfer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural retrieval and reranking: build collections, search, serve, evaluate, train.",
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(VERSION)
        raise typer.Exit


def register_commands() -> None:
    """Adds every command to `app`, in the order in which `chamfer --help` lists them. A second call does nothing."""
    from chamfer.cli import (
        add,
        build,
        compact,
        delete,
        demo,
        doctor,
        evaluate,
        health,
        inspect,
        judge,
        mine,
        plan,
        search,
        selections,
        serve,
        soup,
        train,
    )

    if app.registered_commands:
        return
    for module in (build, add, delete, compact, inspect, search, serve, health, evaluate, plan):
        module.register(app)
    for module in (mine, judge, selections, train, soup, doctor, demo):
        module.register(app)


def main() -> None:
    """Runs the command. Exit status: 0 success, 1 failure, 2 invalid input, 130 interrupted."""
    register_commands()
    try:
        app(standalone_mode=True)
    except ChamferError as error:
        typer.secho(f"chamfer: {error.detail}", err=True, fg="red")
        sys.exit(2 if isinstance(error, InvalidInput | NotFound) else 1)
    except KeyboardInterrupt:
        typer.secho("chamfer: interrupted; finished work is kept: run the same command again to resume", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        hint = "; finished work is kept: free some space, then run the same command again" if _disk_full(error) else ""
        typer.secho(f"chamfer: {path}{error.strerror or error}{hint}", err=True, fg="red")
        sys.exit(1)


def _disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
