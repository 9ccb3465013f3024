"""The other side of an inverted index: the terms of given documents, for feedback and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from chamfer.types import I64, Array, SparseVectors, ragged_index
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
        return SparseVectors.concatenate(
            [
                SparseVectors(np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(1, np.int64), self._vocabulary),
                *(self._row(int(number), row) for number, row in zip(part_of, local, strict=True)),
            ]
        )

    def _row(self, number: int, row: np.int64) -> SparseVectors:
        with self._lock:
            if number not in self._turned:
                self._turned[number] = self._turn(self._parts[number].arrays, self._parts[number].n_documents)
        offsets, terms, values = self._turned[number]
        places, own = ragged_index(offsets, np.array([row]))
        found = self._term_maps[number][terms[places]].astype(np.int32)
        return SparseVectors(values[places].astype(np.float32), found, own, self._vocabulary)

    def _turn(self, arrays: Mapping[str, Array], n_documents: int) -> tuple[I64, Array, Array]:
        lengths = np.diff(arrays["offsets"])
        term_of = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)  # ascends, as `invert` asks
        return invert(np.asarray(arrays["documents"]), term_of, np.asarray(arrays[self._values]), n_documents)
