"""The other side of an inverted index: the terms of given documents, for feedback and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from chamfer.types import F32, I32, I64, Array, SparseVectors
from indexing.family import SegmentPart, locate, starts_of
from indexing.kernels.inverted import invert


class ForwardIndex:
    """Posting lists turned around, one segment at a time when one of its documents is first asked for.

    `values` names the array of the postings' weights; term_maps[i] i64 [V_i] gives the collection's number of every
    term of part i, ascending. Costs O(Z log Z) once and 4 bytes and a weight a posting of memory from then on.
    """

    def __init__(self, parts: Sequence[SegmentPart], values: str, term_maps: Sequence[I64], vocabulary: int) -> None:
        self._parts = parts
        self._values = values
        self._term_maps = term_maps
        self._vocabulary = vocabulary
        self._starts = starts_of(parts)
        self._turned: dict[int, tuple[I64, Array, Array]] = {}
        self._lock = Lock()

    def vectors(self, rows: I64) -> SparseVectors:
        """The stored weights of rows i64 [K], as they lie in the index."""
        part_of, local = locate(self._starts, rows)
        found = [self._row(int(number), int(row)) for number, row in zip(part_of, local, strict=True)]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(terms) for terms, _ in found], out=offsets[1:])
        terms = np.concatenate([np.empty(0, dtype=np.int32), *(terms for terms, _ in found)])
        weights = np.concatenate([np.empty(0, dtype=np.float32), *(values for _, values in found)])
        return SparseVectors(weights, terms, offsets, self._vocabulary)

    def _row(self, number: int, row: int) -> tuple[I32, F32]:
        with self._lock:
            if number not in self._turned:
                self._turned[number] = self._turn(self._parts[number].arrays, self._parts[number].n_documents)
        offsets, terms, values = self._turned[number]
        span = slice(int(offsets[row]), int(offsets[row + 1]))
        return self._term_maps[number][terms[span]].astype(np.int32), values[span].astype(np.float32)

    def _turn(self, arrays: Mapping[str, Array], n_documents: int) -> tuple[I64, Array, Array]:
        lengths = np.diff(arrays["offsets"])
        term_of = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)  # ascends, as `invert` asks
        return invert(np.asarray(arrays["documents"]), term_of, np.asarray(arrays[self._values]), n_documents)
