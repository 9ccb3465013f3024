"""The JSON encoder of everything that the service writes: HTTP bodies and the selection log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


def to_json(value: Any) -> bytes:
    """The value as UTF-8 JSON.

    NaN and infinity become null, lone surrogates become question marks, and values that JSON cannot represent become
    their string form.
    """
    try:
        return orjson.dumps(value, default=str)
    except TypeError:
        return orjson.dumps(_encodable(value), default=str)


def _encodable(value: Any) -> Any:
    """The value as orjson accepts it: lone surrogates replaced, keys and integers beyond 64 bits made strings."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    if isinstance(value, Mapping):
        return {_encodable(str(key)): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
