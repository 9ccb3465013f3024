"""The console: a static page, read once, and served with headers that forbid loading anything from another host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parents[1] / "console"

# Path -> (file, media type). No other file in the folder is served.
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_console(router: APIRouter) -> None:
    """Adds the files of the console."""
    for path, (name, media_type) in PAGES.items():
        page = _page((FOLDER / name).read_bytes(), media_type)
        router.add_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


def _page(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(_request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return page
