"""Chamfer: neural retrieval and reranking. `chamfer.build` and `chamfer.open` are the entry points from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamfer.core.version import VERSION

if TYPE_CHECKING:
    from chamfer.api import build, open
    from chamfer.core.types import Document, Hit, Query
    from chamfer.service.search.searcher import Searcher

__version__ = VERSION
__all__ = ["Document", "Hit", "Query", "Searcher", "__version__", "build", "open"]


def __getattr__(name: str) -> object:
    # Imported on first use, so that `import chamfer` stays fast: chamfer.api loads torch and other heavy packages.
    if name in ("build", "open", "Searcher"):
        from chamfer import api

        return getattr(api, name)
    if name in ("Document", "Hit", "Query"):
        from chamfer.core import types

        return getattr(types, name)
    raise AttributeError(f"module 'chamfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
