"""Training groups: a query, its candidates, their labels and what teachers said of them; Parquet on disk.

A group is a row of groups.parquet: query_id, query, source, split strings; doc_ids list of strings; labels list of
f32 (above 0: relevant); every other list column is a teacher's scores or a feature of the pool, aligned with doc_ids.
Texts stand once, in documents.parquet (doc_id, text). Mining writes this form, all jobs read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.errors import InvalidInput, NotFound

_FIXED = ("query_id", "query", "source", "split", "doc_ids", "labels")
Choose = Callable[[list[str], list[str]], Sequence[int]]
"""Sources and splits of all rows to the rows that are read."""


@dataclass(frozen=True, slots=True)
class Group:
    """One query with n candidates: doc_ids, labels and every teacher's scores have length n."""

    query_id: str
    query: str
    doc_ids: Sequence[str]
    labels: Sequence[float]
    source: str = ""
    split: str = "train"
    teachers: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in {"labels": self.labels, **self.teachers}.items():
            if len(column) != len(self.doc_ids):
                raise InvalidInput(
                    f"group {self.query_id!r} has {len(self.doc_ids)} candidates and {len(column)} {name}"
                )

    @property
    def positives(self) -> list[int]:
        """Places of the relevant candidates."""
        return [place for place, label in enumerate(self.labels) if label > 0]

    @property
    def negatives(self) -> list[int]:
        """Places of the others, in the order of the pool."""
        return [place for place, label in enumerate(self.labels) if label <= 0]


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Writes groups as Parquet; a teacher that a group lacks is null there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    teachers = sorted({name for group in groups for name in group.teachers})
    columns = {name: pa.array([getattr(group, name) for group in groups], pa.string()) for name in _FIXED[:4]}
    columns["doc_ids"] = pa.array([list(group.doc_ids) for group in groups], pa.list_(pa.string()))
    columns["labels"] = pa.array([list(group.labels) for group in groups], pa.list_(pa.float32()))
    for name in teachers:
        values = [list(group.teachers[name]) if name in group.teachers else None for group in groups]
        columns[name] = pa.array(values, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_groups(path: Path, choose: Choose | None = None) -> list[Group]:
    """The groups of a file; `choose` gets source and split of every row and names the rows that are read.

    NotFound without the file, InvalidInput where a column is missing.
    """
    table = _table(path, ("query_id", "query", "doc_ids", "labels"))
    if choose is not None:
        sources, splits = (_texts(table, name) for name in ("source", "split"))
        table = table.take(list(choose(sources, splits)))
    rows: list[dict[str, Any]] = table.to_pylist()
    return [
        Group(
            query_id=row["query_id"],
            query=row["query"],
            doc_ids=row["doc_ids"],
            labels=row["labels"],
            source=row.get("source") or "",
            split=row.get("split") or "train",
            teachers={k: v for k, v in row.items() if k not in _FIXED and isinstance(v, list)},
        )
        for row in rows
    ]


def write_documents(path: Path, documents: Mapping[str, str]) -> None:
    """Writes texts by doc_id as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"doc_id": pa.array(list(documents), pa.string()), "text": pa.array(list(documents.values()))})
    pq.write_table(table, path, compression="zstd")


def read_documents(path: Path) -> dict[str, str]:
    """Texts by doc_id."""
    table = _table(path, ("doc_id", "text"))
    return dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def check_groups(groups: Iterable[Group], documents: Mapping[str, str], *, needs_positive: bool = True) -> None:
    """InvalidInput for a group without a positive (where one is needed) or with a document that is not there."""
    for group in groups:
        if needs_positive and not group.positives:
            raise InvalidInput(f"group {group.query_id!r} has no relevant candidate")
        for doc_id in group.doc_ids:
            if doc_id not in documents:
                raise InvalidInput(f"group {group.query_id!r} names document {doc_id!r}, which is not in the documents")


def sample_places(group: Group, negatives: int, first: int, last: int, rng: np.random.Generator) -> list[int]:
    """Places of one positive and then `negatives` others, drawn from the pool's negatives at ranks first..last-1.

    With fewer of them, all negatives are drawn from; with none at all, they repeat.
    """
    positive = int(rng.choice(group.positives))
    window = group.negatives[first:last] or group.negatives
    if len(window) < negatives:
        window = group.negatives
    if not window:
        raise InvalidInput(f"group {group.query_id!r} has no candidate that is not relevant")
    drawn = rng.choice(len(window), size=negatives, replace=len(window) < negatives)
    return [positive, *(window[int(place)] for place in drawn)]


def _table(path: Path, needed: Sequence[str]) -> Any:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise NotFound(f"{path} does not exist; expected a Parquet file with {', '.join(needed)}")
    table = pq.read_table(path)
    if missing := set(needed) - set(table.column_names):
        raise InvalidInput(f"{path} lacks the columns {sorted(missing)}; it has {table.column_names}")
    return table


def _texts(table: Any, name: str) -> list[str]:
    if name not in table.column_names:
        return ["train" if name == "split" else ""] * table.num_rows
    return [value or ("train" if name == "split" else "") for value in table[name].to_pylist()]
