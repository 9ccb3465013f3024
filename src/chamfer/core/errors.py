"""The errors that Chamfer raises deliberately.

    ChamferError
    ├── InvalidInput        the input cannot be used as given
    ├── NotFound            a collection, document, model or file does not exist
    ├── Conflict            another writer holds the target, or the target already exists
    ├── Overloaded          a queue is full; retry later
    ├── Corrupt             bytes on disk do not match their manifest
    ├── Incompatible        written by another format version, encoder or configuration
    ├── Internal            a state that should not occur
    ├── Unavailable         not ready yet, or an external service does not respond
    └── DeadlineExceeded    the caller's time limit has passed

Every message says what was found, what was expected and which setting changes it. The HTTP status of each error is
decided in chamfer.service.http.errors.
"""

from __future__ import annotations

from typing import ClassVar


class ChamferError(Exception):
    """Root of the hierarchy. `code` is stable and machine-readable."""

    code: ClassVar[str] = "internal"

    @property
    def detail(self) -> str:
        """The message, for people."""
        return str(self.args[0]) if self.args else self.code


class InvalidInput(ChamferError):
    """The input cannot be used as given."""

    code = "invalid_input"


class NotFound(ChamferError):
    """Something that the caller named does not exist."""

    code = "not_found"


class Conflict(ChamferError):
    """Another writer holds the target, or the target already exists."""

    code = "conflict"


class Overloaded(ChamferError):
    """A queue is full. `retry_after_seconds` is the suggested wait."""

    code = "overloaded"

    def __init__(self, detail: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Corrupt(ChamferError):
    """Bytes on disk do not match their manifest."""

    code = "corrupt"


class Incompatible(ChamferError):
    """Readable, but written by another format version, encoder or configuration."""

    code = "incompatible"


class Internal(ChamferError):
    """A state that should not occur."""


class Unavailable(ChamferError):
    """Not ready, shutting down, or an external dependency does not respond."""

    code = "unavailable"


class DeadlineExceeded(ChamferError):
    """The caller's time limit has passed."""

    code = "deadline_exceeded"


def as_chamfer_error(error: Exception, failed: str) -> ChamferError:
    """`error` itself if it is a ChamferError, else an Internal that names what `failed`, with `error` as its cause."""
    if isinstance(error, ChamferError):
        return error
    failure = Internal(f"{failed} failed")
    failure.__cause__ = error
    return failure
