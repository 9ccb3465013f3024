"""Arrays are read without an open descriptor, and an exhausted limit of the system is named."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.errors import Unavailable
from chamfer.core.mapped_files import MAPPED_FROM_BYTES, map_array, map_file, naming_limits


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("n", [0, 10, MAPPED_FROM_BYTES])
def test_an_open_array_holds_no_descriptor(tmp_path: Path, n: int) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(n, dtype=np.int64))
    before = open_descriptors()
    arrays = [map_array(path) for _ in range(20)]
    assert open_descriptors() == before
    for array in arrays:
        np.testing.assert_array_equal(array, np.arange(n))
        assert not array.flags.writeable


def test_a_large_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "large"
    path.write_bytes(b"x" * 10 * MAPPED_FROM_BYTES)
    before = pa.total_allocated_bytes()
    buffer = map_file(path)
    assert buffer.size == 10 * MAPPED_FROM_BYTES
    assert pa.total_allocated_bytes() == before


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    expected = np.arange(MAPPED_FROM_BYTES)
    np.save(path, expected)
    array = map_array(path)
    path.unlink()
    np.testing.assert_array_equal(array, expected)


def test_arrays_of_objects_and_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects.npy", "text.npy"):
        with pytest.raises(ValueError, match=r"object|magic"):
            map_array(tmp_path / name)


def test_too_many_open_files_are_reported_with_the_limit_and_what_raises_it() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(Unavailable, match=rf"may open {soft:,} at a time.*ulimit -n"), naming_limits(Path("c")):
        raise OSError(errno.EMFILE, "Too many open files")


def test_too_many_mappings_are_reported_with_the_advice_to_compact() -> None:
    pyarrow_sets_no_errno = OSError("Memory mapping file failed: Cannot allocate memory")
    for error in (pyarrow_sets_no_errno, OSError(errno.ENOMEM, "Cannot allocate memory")):
        with pytest.raises(Unavailable, match=r"vm\.max_map_count.*chamfer compact"), naming_limits(Path("c")):
            raise error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(OSError, match="No space left"), naming_limits(Path("c")):
        raise OSError(errno.ENOSPC, "No space left on device")
