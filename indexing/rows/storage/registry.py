"""The storages by name. A new storage is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from chamfer.indexing.rows.storage.float16 import Float16
from chamfer.indexing.rows.storage.float32 import Float32
from chamfer.indexing.rows.storage.int8 import Int8
from chamfer.indexing.rows.storage.pq import ProductCodes
from chamfer.indexing.rows.storage.protocol import Storage
from chamfer.indexing.rows.storage.rabitq import BitCodes

STORAGES: Mapping[str, Storage] = {
    "float32": Float32(),
    "float16": Float16(),
    "int8": Int8(),
    "pq8": ProductCodes(),
    "rabitq": BitCodes(),
}
