"""Reading the Arrow IPC files of an artifact: record batches over its mapped bytes, without an open descriptor."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from chamfer.core.artifact import Artifact
from chamfer.core.errors import Corrupt
from chamfer.core.mapped_files import map_file


def read_batches(artifact: Artifact, name: str) -> list[pa.RecordBatch]:
    """The record batches of the Arrow file `name`; nothing is copied from a mapped file.

    Raises Corrupt if the file is missing or is no Arrow file.
    """
    path = artifact.file(name)
    try:
        contents = map_file(path)  # outside the next `try`: an exhausted limit of the system is not damage
    except FileNotFoundError as error:
        raise _unreadable(path, error) from error
    try:
        reader = pa.ipc.open_file(contents)
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:  # OSError: how pyarrow reports most damage
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Corrupt:
    return Corrupt(f"{path} is not a readable Arrow file: {error}; restore it from a copy or build again")
