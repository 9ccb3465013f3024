"""faiss, imported at its first use."""

from __future__ import annotations

from typing import Any


def faiss_library() -> Any:
    """The module faiss. Untyped, because the type stubs that come with it are incomplete and partly wrong."""
    import faiss

    return faiss
