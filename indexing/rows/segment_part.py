"""One channel's part of a segment, and the row numbers that continue through the parts of a collection in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import I64, Array, Bool

Codec = Mapping[str, Array]
"""What the scores of a channel depend on beyond its configuration: drawn matrices, means, codebooks. It belongs to the
collection and is stored in its snapshots, so that scores of all segments are comparable. Empty for most families."""


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """One channel's arrays in one segment (memory-mapped), and which of its rows are live.

    `live` bool [n] is False where a document was deleted; None means that all are live.
    """

    arrays: Mapping[str, Array]
    live: Bool | None
    n_documents: int

    @property
    def n_live(self) -> int:
        return self.n_documents if self.live is None else int(np.count_nonzero(self.live))

    def live_rows(self) -> I64:
        """Rows i64 [n_live], ascending."""
        return np.arange(self.n_documents, dtype=np.int64) if self.live is None else np.flatnonzero(self.live)

    def live_blocks(self, bytes_per_row: int, budget: int) -> Iterator[I64]:
        """The live rows in blocks whose values take at most `budget` bytes (at least one row per block)."""
        rows = self.live_rows()
        step = max(1, budget // max(bytes_per_row, 1))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def starts_of(parts: Sequence[SegmentPart]) -> I64:
    """First row of each part and, last, the number of rows: i64 [P+1]."""
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([part.n_documents for part in parts], out=starts[1:])
    return starts


def locate(starts: I64, rows: I64) -> tuple[I64, I64]:
    """(part number, row inside the part) of rows i64 [K]. InvalidInput for a row that does not exist."""
    if len(rows) and (rows.min() < 0 or rows.max() >= starts[-1]):
        raise InvalidInput(f"a row is outside 0..{starts[-1] - 1}")
    part_of = np.searchsorted(starts, rows, side="right") - 1
    return part_of, rows - starts[part_of]


def allowed_rows(parts: Sequence[SegmentPart], allowed: Bool | None) -> Bool | None:
    """Live and allowed rows: bool [N], or None where every row is. InvalidInput if `allowed` has another length."""
    n_rows = sum(part.n_documents for part in parts)
    if allowed is not None and allowed.shape != (n_rows,):
        raise InvalidInput(f"allowed has shape {allowed.shape}, expected [{n_rows}]")
    if all(part.live is None for part in parts):
        return allowed
    live = np.concatenate([np.ones(p.n_documents, dtype=bool) if p.live is None else p.live for p in parts])
    return live if allowed is None else live & allowed


def part_of_mask(starts: I64, number: int, mask: Bool | None) -> Bool | None:
    """The slice of a mask bool [N] over all rows that belongs to part `number`; None stays None."""
    return None if mask is None else mask[starts[number] : starts[number + 1]]
