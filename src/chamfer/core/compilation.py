"""The one decorator for numba functions: compiled at the first call, cached on disk where a directory is writable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import config, njit

from chamfer.core.home import home_directory

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*, error_model: str = "python", fastmath: frozenset[str] = frozenset()) -> Callable[[Function], Function]:
    """Decorates a function with `numba.njit`, without the GIL; `error_model` and `fastmath` are numba's options.

    Machine code is cached beside the source file, in the user's cache directory, or where NUMBA_CACHE_DIR says. Where
    none of them is writable (a read-only installation and no home directory, as in many containers), numba raises
    RuntimeError at decoration, hence at import. For a user without a home it would make a directory named "~" in the
    working directory. In both cases the function is compiled anew in every process.
    """
    may_cache = bool(config.CACHE_DIR) or home_directory() is not None
    options = {"nogil": True, "error_model": error_model, "fastmath": set(fastmath)}

    def decorate(function: Function) -> Function:
        try:
            dispatcher: Function = njit(cache=may_cache, **options)(function)
        except RuntimeError:
            dispatcher = njit(**options)(function)
        return dispatcher

    return decorate
