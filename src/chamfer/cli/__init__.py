"""The command line: parse, call, print. Data goes to standard output, everything else to standard error."""

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
    help="Neural retrieval and reranking: build collections, search, serve, evaluate.",
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(VERSION)
        raise typer.Exit


def main() -> None:
    """Runs the command. Exit status: 0 done, 1 failed, 2 the input cannot be used, 130 interrupted."""
    from chamfer.cli import demo, doctor, evaluating, mining, planning, searching, training, writing

    for module in (writing, searching, evaluating, planning, mining, training, doctor, demo):
        module.register(app)
    try:
        app(standalone_mode=True)
    except ChamferError as error:
        typer.secho(f"chamfer: {error.detail}", err=True, fg="red")
        sys.exit(2 if isinstance(error, InvalidInput | NotFound) else 1)
    except KeyboardInterrupt:
        typer.secho("chamfer: interrupted; what was finished is kept, run the same command to go on", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        hint = "; what was finished is kept, run the same command again once there is room" if _full(error) else ""
        typer.secho(f"chamfer: {place}{error.strerror or error}{hint}", err=True, fg="red")
        sys.exit(1)


def _full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
