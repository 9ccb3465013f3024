"""Reading files without holding descriptors, and a clear error where the system runs out of them.

`numpy.memmap` keeps one descriptor for each array (`mmap` duplicates it), so that a process with the usual limit of
1,024 could open about 75 segments. Here a file is mapped by pyarrow, whose mapping outlives the closed descriptor;
a small file is read into memory, so that thousands of small segments do not reach the system's limit of mappings.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import Unavailable
from chamfer.core.types import Array

MAPPED_FROM_BYTES = 65_536  # smaller files are read: a mapping takes whole pages and counts against vm.max_map_count
_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
_OPEN_FILES = "/proc/self/fd"


def map_file(path: Path) -> Any:
    """The bytes of a file as a read-only `pyarrow.Buffer`, mapped unless the file is small. No descriptor stays open.

    Raises OSError, of which `naming_limits` translates those that a limit of the system caused.
    """
    import pyarrow as pa

    small = path.stat().st_size < MAPPED_FROM_BYTES
    with pa.OSFile(str(path)) if small else pa.memory_map(str(path)) as file:
        return file.read_buffer()  # a mapping lives as long as its buffers, not as long as the file object


def map_array(path: Path) -> Array:
    """The array of a .npy file, read-only. Raises ValueError if it is not one, or holds Python objects."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"npy format version {version[0]}.{version[1]}, expected 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError("the array holds Python objects")
    count = int(np.prod(shape, dtype=np.int64))
    flat: Array = np.frombuffer(map_file(path), dtype=dtype, count=count, offset=start) if count else np.empty(0, dtype)
    flat.flags.writeable = False
    return flat.reshape(shape, order="F" if fortran_order else "C")


@contextmanager
def naming_limits(path: Path) -> Iterator[None]:
    """Turns an exhausted limit of the system into Unavailable: which limit, its value, and what to do about it."""
    try:
        yield
    except OSError as error:
        message = _exhausted_limit(path, error)
        if message is None:
            raise
        raise Unavailable(message) from error


def _exhausted_limit(path: Path, error: OSError) -> str | None:
    """The message for an error that a limit of the system caused; None for any other error."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"{path}: too many open files: this process may open {soft:,} at a time (`ulimit -n`, at most {hard:,}) "
            f"and has {_open_files()} open. Chamfer keeps no file of a collection open and needs fewer than 32 at a "
            "time; raise the limit (`ulimit -n 4096`) or close other files of this process"
        )
    if error.errno == errno.ENOMEM or "Cannot allocate memory" in str(error):
        return (
            f"{path}: the system refused to map another file into memory. It allows {_most_mappings()} mappings per "
            "process (vm.max_map_count), and each segment needs one for every file of 64 KiB or more: merge segments "
            "(`chamfer compact`), build with larger blocks (build.block_documents), or raise the limit "
            "(`sysctl vm.max_map_count=262144`); a limit on address space (`ulimit -v`) has the same effect"
        )
    return None


def _open_files() -> str:
    try:
        return f"{len(os.listdir(_OPEN_FILES)):,}"
    except OSError:
        return "as many"  # listing them needs a descriptor too


def _most_mappings() -> str:
    try:
        return f"{int(_MAX_MAP_COUNT.read_text()):,}"
    except (OSError, ValueError):
        return "a limited number of"
