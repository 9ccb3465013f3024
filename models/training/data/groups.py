"""Training groups: a query, its candidates, their labels and the scores of teachers, stored as Parquet.

A group is a row of groups.parquet: query_id, query, source, split (strings); doc_ids (list of strings); labels (list of
f32, above 0: relevant). Every other list column is aligned with doc_ids and holds a teacher's scores or a feature of
the pool. documents.parquet has the texts (doc_id, text), each once. Mining writes these files and all jobs read them.
Multimodal jobs also read the columns `query_image` of the groups and `image` of the documents: the bytes of an image
file, or its path relative to the folder of the Parquet file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.parquet import float_lists, read_table, table_writer, write_table

_FIXED = ("query_id", "query", "source", "split", "doc_ids", "labels")
Image = Path | bytes
Choose = Callable[[list[str], list[str]], Sequence[int]]
"""Maps the sources and splits of all rows to the rows to read."""


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
    query_image: Image | None = None

    def __post_init__(self) -> None:
        for name, column in {"labels": self.labels, **self.teachers}.items():
            if len(column) != len(self.doc_ids):
                raise InvalidInput(
                    f"group {self.query_id!r} has {len(self.doc_ids)} candidates and {len(column)} {name}; "
                    "expected one for each"
                )

    @property
    def positives(self) -> list[int]:
        """Indices of the relevant candidates."""
        return [index for index, label in enumerate(self.labels) if label > 0]

    @property
    def negatives(self) -> list[int]:
        """Indices of the other candidates, in the order of the pool."""
        return [index for index, label in enumerate(self.labels) if label <= 0]

    def take(self, candidates: Sequence[int]) -> Group:
        """The group with only these candidates, given by index, in this order."""
        return replace(
            self,
            doc_ids=[self.doc_ids[index] for index in candidates],
            labels=[self.labels[index] for index in candidates],
            teachers={name: [column[index] for index in candidates] for name, column in self.teachers.items()},
        )


def table_of(groups: Sequence[Group]) -> pa.Table:
    """Groups as a table, one row each; a teacher missing from a group is null."""
    columns: dict[str, Any] = {
        name: pa.array([getattr(group, name) for group in groups], pa.string()) for name in _FIXED[:4]
    }
    columns["doc_ids"] = pa.array([list(group.doc_ids) for group in groups], pa.list_(pa.string()))
    columns["labels"] = float_lists([group.labels for group in groups])
    for name in dict.fromkeys(name for group in groups for name in group.teachers):
        columns[name] = float_lists([group.teachers.get(name) for group in groups])
    if images := _images([group.query_image for group in groups]):
        columns["query_image"] = images[0]
    return pa.table(columns)


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Writes groups as Parquet."""
    write_table(path, table_of(groups))


def read_groups(path: Path, choose: Choose | None = None) -> list[Group]:
    """The groups of a file, or those that `choose` selects by source and split.

    NotFound without the file, InvalidInput if a column is missing.
    """
    table = read_table(path, ("query_id", "query", "doc_ids", "labels"))
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
            query_image=_image(row.get("query_image"), path),
        )
        for row in rows
    ]


def write_documents(path: Path, blocks: Iterable[tuple[Sequence[str], Sequence[str]]]) -> None:
    """Writes texts by doc_id as Parquet, block by block of (doc_ids, texts)."""
    schema = pa.schema([("doc_id", pa.string()), ("text", pa.string())])
    with table_writer(path, schema) as writer:
        for ids, texts in blocks:
            writer.write_table(pa.table({"doc_id": list(ids), "text": list(texts)}, schema=schema))


def add_images(path: Path, images: Mapping[str, Image]) -> None:
    """Adds images to a file of documents."""
    table = read_table(path, ("doc_id", "text"))
    columns = _images([images.get(doc_id) for doc_id in table["doc_id"].to_pylist()])
    table = table.select(["doc_id", "text"])
    write_table(path, table.append_column("image", columns[0]) if columns else table)


def read_documents(path: Path) -> dict[str, str]:
    """Texts by doc_id."""
    table = read_table(path, ("doc_id", "text"))
    return dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def read_images(path: Path) -> dict[str, Image]:
    """Images by doc_id, for the documents that have one."""
    table = read_table(path, ("doc_id", "text"))
    if "image" not in table.column_names:
        return {}
    rows = zip(table["doc_id"].to_pylist(), table["image"].to_pylist(), strict=True)
    return {doc_id: image for doc_id, stored in rows if (image := _image(stored, path)) is not None}


def check_groups(groups: Iterable[Group], documents: Mapping[str, str], *, needs_positive: bool = True) -> None:
    """InvalidInput for a group without a required positive, or with a document that has no text."""
    for group in groups:
        if needs_positive and not group.positives:
            raise InvalidInput(f"group {group.query_id!r} has no relevant candidate")
        for doc_id in group.doc_ids:
            if doc_id not in documents:
                raise InvalidInput(f"group {group.query_id!r} names document {doc_id!r}, which is not in the documents")


def sample_candidates(
    group: Group, num_negatives: int, range_min: int, range_max: int, rng: np.random.Generator
) -> list[int]:
    """Indices of one positive and then `num_negatives` others, sampled from negatives[range_min:range_max].

    If that slice is too short, all negatives are sampled from; if those are too few, some repeat. InvalidInput for a
    group without negatives.
    """
    positive = int(rng.choice(group.positives))
    window = group.negatives[range_min:range_max] or group.negatives
    if len(window) < num_negatives:
        window = group.negatives
    if not window:
        raise InvalidInput(f"group {group.query_id!r} has no candidate that is not relevant")
    sampled = rng.choice(len(window), size=num_negatives, replace=len(window) < num_negatives)
    return [positive, *(window[int(rank)] for rank in sampled)]


def _image(stored: bytes | str | None, path: Path) -> Image | None:
    return path.parent / stored if isinstance(stored, str) else stored


def _images(images: Sequence[Image | None]) -> list[pa.Array]:
    """One column of images, as bytes if any image is given as bytes, else as paths; [] if there are none."""
    if all(image is None for image in images):
        return []
    if any(isinstance(image, bytes) for image in images):
        return [pa.array([i.read_bytes() if isinstance(i, Path) else i for i in images], pa.binary())]
    return [pa.array([None if image is None else str(image) for image in images], pa.string())]


def _texts(table: Any, name: str) -> list[str]:
    if name not in table.column_names:
        return ["train" if name == "split" else ""] * table.num_rows
    return [value or ("train" if name == "split" else "") for value in table[name].to_pylist()]
