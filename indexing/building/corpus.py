"""Reads corpora, queries and relevance judgements from files. Errors name the file and line of a bad record."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.evaluation import Qrel
from chamfer.core.types import Document, Query

_ID_NAMES = ("_id", "id", "doc_id", "docno")
_BODY_NAMES = (*_ID_NAMES, "title", "text", "metadata")


@dataclass(slots=True)
class Rejects:
    """Counts records that were skipped, and writes them as NDJSON to `path` (if given) with location and reason.

    Each line is {"place": "FILE:LINE", "reason": ..., "line": the record, at most 10,000 characters}.
    """

    path: Path | None = None
    count: int = 0
    _file: IO[str] | None = field(default=None, repr=False)

    def add(self, location: str, reason: str, line: str) -> None:
        self.count += 1
        if self.path is not None:
            if self._file is None:
                # surrogateescape writes bytes that are not UTF-8 unchanged.
                self._file = self.path.open("w", encoding="utf-8", errors="surrogateescape")
            self._file.write(
                json.dumps({"place": location, "reason": reason, "line": line[:10_000]}, ensure_ascii=False) + "\n"
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_corpus(
    source: str, *, on_error: Literal["stop", "skip"] = "stop", rejects: Rejects | None = None
) -> Iterator[Document]:
    """Streams the documents of a corpus.

    `source` is a BEIR folder (corpus.jsonl), an NDJSON or JSONL file (these three also as .gz), a Parquet file or
    folder, or `ir_datasets:ID`. A bad record, or one that repeats an earlier doc_id, raises InvalidInput naming file
    and line; with on_error "skip" it is added to `rejects`. Raises NotFound if there is no such source.
    """
    rejects = rejects or Rejects()
    seen: set[bytes] = set()
    try:
        for location, line, parse in _records(source):
            try:
                document = parse()
                digest = blake2b(document.doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                if digest in seen:
                    raise InvalidInput(
                        f"document id {document.doc_id!r} was already used; ids must be unique in a collection"
                    )
            except InvalidInput as error:
                if on_error == "stop":
                    raise InvalidInput(
                        f"{location}: {error.detail} (--on-error skip leaves such records out and lists them)"
                    ) from error
                rejects.add(location, error.detail, line)
                continue
            seen.add(digest)
            yield document
    finally:
        rejects.close()


def count_lines(source: str) -> int | None:
    """The number of lines of a JSONL corpus, for progress bars; None for sources where counting is expensive."""
    path = Path(source)
    path = path / "corpus.jsonl" if path.is_dir() else path
    if path.suffix not in (".jsonl", ".ndjson", ".json") or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def document_from(record: Any) -> Document:
    """A Document from a JSON object with `_id` (or id, doc_id, docno), title, text and metadata.

    Other keys are added to the metadata. Raises InvalidInput for a missing id and for values of the wrong type.
    """
    if not isinstance(record, Mapping):
        raise InvalidInput(f"found {type(record).__name__}, expected an object with _id and text")
    name = next((name for name in _ID_NAMES if name in record), None)
    if name is None:
        raise InvalidInput(f"there is no id; expected one of {', '.join(_ID_NAMES)}, found {sorted(record)[:10]}")
    doc_id = record[name]
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        doc_id = str(doc_id)
    if not isinstance(doc_id, str) or not doc_id:
        raise InvalidInput(f"{name} is {doc_id!r}, expected a non-empty string or an integer")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata is {type(metadata).__name__}, expected an object")
    extra = {key: value for key, value in record.items() if key not in _BODY_NAMES and value is not None}
    merged = {**extra, **metadata}
    _check_json(merged, "metadata")
    return Document(doc_id, _text(record, "text"), _text(record, "title"), merged)


def read_queries(source: Path) -> list[Query]:
    """The queries of a BEIR folder (queries.jsonl, also .gz) or of a JSONL file."""
    path = _existing(source / "queries.jsonl") if source.is_dir() else source
    if not path.exists():
        raise NotFound(f"{path} does not exist; expected a BEIR folder with queries.jsonl, or a JSONL file of queries")
    queries = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            document = document_from(_loads(line))
            queries.append(Query(document.doc_id, document.text))
        except InvalidInput as error:
            raise InvalidInput(f"{path}:{number}: {error.detail}") from error
    return queries


def read_qrels(folder: Path, split: str) -> list[Qrel]:
    """The judgements in qrels/SPLIT.tsv: BEIR's columns query-id, corpus-id, score under a header, or TREC's four.

    `folder` may also be a file in that folder. Raises NotFound for a missing split, InvalidInput for a bad line.
    """
    folder = folder if folder.is_dir() else folder.parent
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        splits = sorted(p.stem for p in (folder / "qrels").glob("*.tsv"))
        raise NotFound(f"{path} does not exist; splits there: {', '.join(splits) or 'none'} (choose with --split)")
    qrels = []
    for number, line in _lines(path):
        parts = line.split()
        if not parts or (number == 1 and parts[-1] == "score"):
            continue
        if len(parts) == 4:  # TREC: qid 0 docid relevance
            parts = [parts[0], parts[2], parts[3]]
        try:
            query_id, doc_id, relevance = parts
            qrels.append(Qrel(query_id, doc_id, int(relevance)))
        except ValueError as error:
            raise InvalidInput(
                f"{path}:{number}: found {line.strip()!r}, expected query-id, corpus-id, score"
            ) from error
    return qrels


def _records(source: str) -> Iterator[tuple[str, str, Callable[[], Document]]]:
    """(location, raw line, parser) of every record."""
    if source.startswith("ir_datasets:"):
        yield from _from_ir_datasets(source.removeprefix("ir_datasets:"))
        return
    path = Path(source)
    if path.is_dir() and not list(path.glob("*.parquet")):
        path = _existing(path / "corpus.jsonl")
    if not path.exists():
        raise NotFound(
            f"corpus {source!r} does not exist; expected a BEIR folder, a .jsonl, .ndjson (also .gz) or Parquet file, "
            "or ir_datasets:ID"
        )
    if path.is_dir() or path.suffix == ".parquet":
        yield from _from_parquet(path)
        return
    for number, line in _lines(path):
        if line.strip():
            yield f"{path}:{number}", line, lambda line=line: document_from(_loads(line))  # type: ignore[misc]  # bound now


def _from_parquet(path: Path) -> Iterator[tuple[str, str, Callable[[], Document]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        number = 0
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", str(record), lambda record=record: document_from(record)  # type: ignore[misc]  # bound now
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInput(f"{file} is not a readable Parquet file: {error}") from error


def _from_ir_datasets(name: str) -> Iterator[tuple[str, str, Callable[[], Document]]]:
    import ir_datasets

    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise NotFound(f"ir_datasets knows no dataset {name!r}") from None
    for number, doc in enumerate(dataset.docs_iter(), start=1):
        fields = doc._asdict()
        text = fields.get("text") or fields.get("body") or doc.default_text()
        record = {"_id": doc.doc_id, "title": fields.get("title") or "", "text": text}
        yield f"ir_datasets:{name}: document {number}", str(record), lambda record=record: document_from(record)  # type: ignore[misc]  # bound now


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines numbered from 1. Bytes that are not UTF-8 become surrogates; a broken .gz raises InvalidInput."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(chain(file), start=1):
                yield number, raw.decode("utf-8", "surrogateescape")
    except (gzip.BadGzipFile, EOFError) as error:
        raise InvalidInput(f"{path}:{number + 1}: the compressed file is broken or cut short: {error}") from error


def _loads(line: str) -> Any:
    if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
        raise InvalidInput("the line is not UTF-8")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the line is not JSON: {error}") from error


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {type(value).__name__}, expected a string")
    return value


def _check_json(value: Any, name: str) -> None:
    """InvalidInput for a value that JSON responses or filters cannot represent."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"{name} has the key {key!r}, expected strings")
            _check_json(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, name)
    elif not isinstance(value, str | bool | int | float | None):
        raise InvalidInput(f"{name} is {type(value).__name__}, expected text, number, boolean, list or object")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{name} is {value}, expected a finite number")
    elif isinstance(value, int) and abs(value) > 2**53:
        raise InvalidInput(f"{name} is {value}, beyond 2^53; write it as a string")


def _existing(path: Path) -> Path:
    """The path, or the path with .gz appended if only that exists."""
    compressed = path.with_name(path.name + ".gz")
    return compressed if not path.exists() and compressed.exists() else path
