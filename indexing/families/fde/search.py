"""Search of an FDE channel: scans all rows, or only the candidates that HNSW or IVF proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Expandable, Retriever
from chamfer.core.types import F32, I64, Bool, Candidates, DenseVectors, TokenVectors, VectorKind
from chamfer.indexing.families.fde.encoder import FdeConfig, FdeEncoder
from chamfer.indexing.kernels.topk import as_candidates, best, check_depth
from chamfer.indexing.rows.ann_index import AnnIndex
from chamfer.indexing.rows.scan import RowScan, no_candidates, rank
from chamfer.indexing.rows.segment_part import Codec, SegmentPart, part_of_mask
from chamfer.indexing.rows.storage.protocol import Scan
from chamfer.indexing.rows.storage.registry import STORAGES

INDEX = "index"
_PARAMETERS = {"flat": ("device",), "hnsw": ("ef_search", "depth_factor"), "ivf": ("n_probe", "depth_factor")}


class FdeRetriever(Retriever[TokenVectors], Expandable[TokenVectors]):
    """Inner products with the query's encoding; scores estimate repetitions times MaxSim."""

    stored_kind: ClassVar[VectorKind] = VectorKind.DENSE

    def __init__(
        self, parts: Sequence[SegmentPart], config: FdeConfig, codec: Codec, encoder: FdeEncoder | None
    ) -> None:
        self._parts = parts
        self._config = config
        self._encoder = encoder
        self._device_scan: Callable[[F32], F32] | None = None
        self._rows = RowScan(parts, STORAGES[config.storage], codec, row_arrays(parts))
        kind = config.search
        self._indexes = [
            AnnIndex(kind, part.arrays[INDEX]) if kind != "flat" and INDEX in part.arrays else None for part in parts
        ]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bytes_per_document(self) -> float:
        """Bytes of all arrays of all parts, per document."""
        return sum(array.nbytes for part in self._parts for array in part.arrays.values()) / max(len(self), 1)

    def search(self, queries: TokenVectors | DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        """The k best rows per query, or all allowed rows if fewer; queries are token vectors or their stored form."""
        check_depth(k)
        usable = self._rows.usable(allowed)
        if self._encoder is None or not len(self):
            return no_candidates(len(queries), k)
        encoded = queries.values if isinstance(queries, DenseVectors) else self._encoder.queries(queries)
        if self._device_scan is not None:
            return _rank_all(self._device_scan(encoded), usable, k)
        if not any(self._indexes):
            return self._rows.search(len(queries), encoded, k, allowed)
        scan_usable = cache(lambda number: self._rows.usable_scan(number, usable))  # copied once, if at all
        ranked = []
        for query in encoded:
            scored = [self._scored(part, query, k, usable, scan_usable) for part in range(len(self._parts))]
            ranked.append(rank(scored, k))
        return as_candidates(ranked, k)

    def vectors(self, rows: I64) -> DenseVectors:
        """The stored vectors f32 [K, D] of rows: their encodings, up to the rounding of the storage."""
        return DenseVectors(self._rows.vectors(rows, self._config.shape().dim))

    def stored_form(self, queries: TokenVectors) -> DenseVectors:
        """The queries' encodings f32 [Q, D], whose inner products with `vectors` are the scores."""
        if self._encoder is None:
            raise InvalidInput("the fde channel of an empty collection encodes nothing")
        return DenseVectors(self._encoder.queries(queries))

    def with_params(self, **params: Any) -> Self:
        """The same rows with other search parameters: ef_search (hnsw), n_probe (ivf), depth_factor (both), device
        (flat).

        device: "cuda" or another torch device; float16 or int8 rows are copied to it, and all of them are scanned.
        """
        names = _PARAMETERS[self._config.search]
        if unknown := sorted(set(params) - set(names)):
            raise InvalidInput(
                f"an fde search of kind {self._config.search} has no parameters {unknown}; known: {list(names)}"
            )
        retriever = copy(self)
        if (device := params.pop("device", None)) is not None:
            retriever._device_scan = self._scan_on(device)
        retriever._config = replace(self._config, **params)
        return retriever

    def _scan_on(self, device: str) -> Callable[[F32], F32]:
        """Copies the rows to the device; returns a function from queries f32 [Q, D] to scores f32 [Q, N]."""
        import torch

        from chamfer.indexing.kernels.fde_torch import inner_products

        if self._config.storage not in ("float16", "int8"):
            raise InvalidInput(f"an fde scan on {device} reads float16 or int8, fde.storage is {self._config.storage}")
        parts = [
            {name: torch.tensor(array, device=device) for name, array in arrays.items()} for arrays in self._rows.arrays
        ]

        def scan(queries: F32) -> F32:
            on_device = torch.from_numpy(queries).to(device)
            each = [inner_products(part["values"], part.get("scales"), on_device) for part in parts]
            scores: F32 = torch.cat(each, dim=1).cpu().numpy()
            return scores

        return scan

    def _scored(
        self, number: int, query: F32, k: int, usable: Bool | None, scan_usable: Callable[[int], tuple[I64, Scan]]
    ) -> tuple[I64, F32]:
        """(rows, scores) of one part: of the candidates that its index proposes, or of all usable rows."""
        proposed = self._proposed(number, query, k, part_of_mask(self._rows.starts, number, usable))
        if proposed is None:
            rows, scan = scan_usable(number)
            return rows, scan(query)
        return int(self._rows.starts[number]) + proposed, self._rows.scan_of(number, proposed)(query)

    def _proposed(self, number: int, query: F32, k: int, usable: Bool | None) -> I64 | None:
        """The candidates of a part's index, ascending; None without an index, or where it proposes too few."""
        index, config = self._indexes[number], self._config
        n_usable = self._parts[number].n_documents if usable is None else int(np.count_nonzero(usable))
        depth = config.depth_factor * k
        if index is None or n_usable <= 2 * depth:
            return None
        effort = config.ef_search if config.search == "hnsw" else config.n_probe
        rows = index.search(query, depth, usable, effort)
        return np.sort(rows) if len(rows) >= min(k, n_usable) else None


def row_arrays(parts: Sequence[SegmentPart]) -> list[str]:
    """The names of the arrays of the storage: all but the index."""
    return [name for name in (parts[0].arrays if parts else ()) if name != INDEX]


def _rank_all(scores: F32, usable: Bool | None, k: int) -> Candidates:
    """The k best of scores f32 [Q, N] among the usable rows."""
    ranked = []
    for each in scores:
        masked = each if usable is None else np.where(usable, each, np.float32(-np.inf))
        rows = best(masked, k)
        ranked.append((rows, masked[rows]))
    return as_candidates(ranked, k)
