"""A pytest plugin that puts the C library built with sanitizers in place of the normal one: `-p support_sanitized`.

`make sanitize` builds it into build/sanitized/. `find_spec` asks sys.modules first, so an entry there is enough.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "chamfer.indexing.kernels._fast"
LIBRARY = Path(__file__).resolve().parents[1] / "build" / "sanitized" / "_fast.so"

if not LIBRARY.is_file():
    raise FileNotFoundError(f"{LIBRARY} does not exist; `make sanitize` builds it")
_module = ModuleType(NAME)
_module.__spec__ = ModuleSpec(NAME, None, origin=str(LIBRARY))
sys.modules[NAME] = _module
