"""`chamfer health`: whether the service on this machine is ready, for container health checks."""

from __future__ import annotations

from typing import Annotated

import typer

from chamfer.core.errors import Unavailable


def _health(
    port: Annotated[int, typer.Option(help="Port of the service on this machine.")] = 8000,
) -> None:
    """Exit with status 0 if the service on this machine is ready, else 1."""
    import httpx

    try:
        status = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code
    except httpx.HTTPError as error:
        raise Unavailable(f"no answer on port {port}: {error}") from error
    if status != 200:
        raise Unavailable(f"the service on port {port} is not ready (status {status})")
    typer.echo("ready")


def register(app: typer.Typer) -> None:
    app.command("health", hidden=True)(_health)
