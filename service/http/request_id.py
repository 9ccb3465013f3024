"""The id of a request: taken from its X-Request-ID header or generated, and kept in the ASGI scope."""

from __future__ import annotations

import re
from random import getrandbits

from starlette.types import Scope

REQUEST_ID = "chamfer.request_id"  # its key in the scope

_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """The caller's X-Request-ID if it is harmless in headers and logs, else a generated one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _HARMLESS.fullmatch(given):
                return str(given)
            break
    return f"{getrandbits(64):016x}"
