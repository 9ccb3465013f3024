"""Every error that Chamfer raises on purpose.

    ChamferError
    ├── InvalidInput        the caller sent something that cannot be used          400
    ├── NotFound            a collection, document, model or file that is not there 404
    ├── Conflict            another writer holds the collection, or it exists       409
    ├── Overloaded          a queue is full; try again later                        429
    ├── Corrupt             bytes on disk are not what the manifest says            500
    ├── Incompatible        another format version, encoder or configuration        500
    ├── Internal            a state that should not occur                           500
    ├── Unavailable         not ready yet, or an outside service does not answer    503
    └── DeadlineExceeded    the time the caller allowed is over                     504

A message says what was found, what was expected and which setting changes it.
The numbers are the one table from kinds to HTTP statuses (`status`).
"""

from __future__ import annotations

from typing import ClassVar


class ChamferError(Exception):
    """Root of the tree: `code` is stable and machine-readable, `status` the HTTP status."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    @property
    def detail(self) -> str:
        """The message, for people."""
        return str(self.args[0]) if self.args else self.code


class InvalidInput(ChamferError):
    """The caller sent something that cannot be used as it is."""

    code = "invalid_input"
    status = 400


class NotFound(ChamferError):
    """Something named by the caller does not exist."""

    code = "not_found"
    status = 404


class Conflict(ChamferError):
    """The target is held by another writer, or exists already."""

    code = "conflict"
    status = 409


class Overloaded(ChamferError):
    """A queue is full. `retry_after_seconds` is the wait to suggest."""

    code = "overloaded"
    status = 429

    def __init__(self, detail: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Corrupt(ChamferError):
    """Bytes on disk differ from what their manifest promises."""

    code = "corrupt"


class Incompatible(ChamferError):
    """Readable, but made by another format version, encoder or configuration."""

    code = "incompatible"


class Internal(ChamferError):
    """A state that should not occur."""


class Unavailable(ChamferError):
    """Not ready, shutting down, or an outside dependency does not answer."""

    code = "unavailable"
    status = 503


class DeadlineExceeded(ChamferError):
    """The time that the caller allowed is over."""

    code = "deadline_exceeded"
    status = 504
