"""Reading the Arrow IPC files of an artifact: record batches over its mapped bytes, without an open descriptor."""

from __future__ import annotations

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
        reader = pa.ipc.open_file(map_file(path))
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise Corrupt(f"{path} is not a readable Arrow file: {error}; restore it from a copy or build again") from error
