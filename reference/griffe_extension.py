"""The Griffe extension that passes every docstring through `reference.docstrings`."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from reference.docstrings import as_markdown


class MarkdownDocstrings(Extension):  # type: ignore[misc]  # griffe is in the extra `docs` alone
    """Rewrites the docstring of every object when it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
