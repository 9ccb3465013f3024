"""Reading corpora, queries and judgements; every bad line is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import Document, Query
from chamfer.indexing.building.corpus import Rejects, count_lines, document_from, read_corpus, read_qrels, read_queries

RECORDS: list[dict[str, Any]] = [
    {"_id": "a", "title": "T", "text": "x", "metadata": {"year": 1999}},
    {"_id": "b", "text": "", "source": "web"},
    {"_id": "c", "text": "straße 東京"},
]
DOCUMENTS = [
    Document("a", "x", "T", {"year": 1999}),
    Document("b", "", "", {"source": "web"}),
    Document("c", "straße 東京"),
]


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def test_all_layouts_give_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "corpus.jsonl").write_text(lines(RECORDS))
    (tmp_path / "beirgz").mkdir()
    (tmp_path / "beirgz" / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS).encode()))
    (tmp_path / "x.ndjson").write_text(lines(RECORDS) + "\n\n")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS).encode()))
    for name in ("beir", "beirgz", "x.ndjson", "x.jsonl.gz"):
        assert list(read_corpus(str(tmp_path / name))) == DOCUMENTS, name


def test_parquet_files_and_folders_are_read(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "title": ["t", None], "text": ["x", "y"], "year": [1999, None]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    expected = [Document("1", "x", "t", {"year": 1999}), Document("2", "y")]
    assert list(read_corpus(str(tmp_path / "part-0.parquet"))) == expected
    assert list(read_corpus(str(tmp_path))) == expected


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InvalidInput, match=r"x\.parquet is not a readable Parquet"):
        list(read_corpus(str(tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "z", "text": 3}', "text is int, expected a string"),
        ('{"text": "no id"}', "there is no id"),
        ('{"_id": 1.5, "text": ""}', "_id is 1.5"),
        ('{"_id": true, "text": ""}', "_id is True"),
        ('{"_id": "", "text": ""}', "non-empty"),
        ("[1]", "found list"),
        ("{broken", "not JSON"),
        ('{"_id": "z", "metadata": []  , "x": NaN}', "x is nan"),
        ('{"_id": "z", "metadata": {"n": 9007199254740993}}', "beyond 2\\^53"),
        ('{"_id": "z", "metadata": "text"}', "metadata is str"),
        ('{"_id": "a", "text": "again"}', "'a' was already used"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_listed(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(lines(RECORDS[:1]) + line + "\n" + lines(RECORDS[1:]))
    with pytest.raises(InvalidInput, match=rf"x\.jsonl:2: .*{message}"):
        list(read_corpus(str(path)))
    rejects = Rejects(tmp_path / "rejects.ndjson")
    assert list(read_corpus(str(path), on_error="skip", rejects=rejects)) == DOCUMENTS
    [kept] = [json.loads(row) for row in (tmp_path / "rejects.ndjson").read_text().splitlines()]
    assert rejects.count == 1
    assert kept["place"].endswith("x.jsonl:2")
    assert kept["line"].strip() == line


def test_bytes_that_are_not_utf8_make_a_bad_line_and_not_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"_id": "a", "text": "\xff\xfe"}\n' + lines(RECORDS[1:]).encode())
    with pytest.raises(InvalidInput, match=r"x\.jsonl:1: the line is not UTF-8"):
        list(read_corpus(str(path)))
    assert list(read_corpus(str(path), on_error="skip", rejects=Rejects(tmp_path / "r"))) == DOCUMENTS[1:]


def test_a_compressed_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(lines(RECORDS * 100).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="broken or cut short"):
        list(read_corpus(str(tmp_path / "x.jsonl.gz"), on_error="skip", rejects=Rejects()))


def test_deep_nesting_is_a_bad_line_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"_id": "a", "metadata": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(InvalidInput, match="not JSON"):
        list(read_corpus(str(tmp_path / "x.jsonl")))


def test_a_missing_source_is_reported_with_the_accepted_kinds() -> None:
    with pytest.raises(NotFound, match="expected a BEIR folder"):
        list(read_corpus("nowhere"))
    with pytest.raises(NotFound, match="knows no dataset"):
        list(read_corpus("ir_datasets:no-such-set"))


def test_ir_datasets_are_read_by_id() -> None:
    import ir_datasets
    from ir_datasets.formats import BaseDocs
    from ir_datasets.formats.base import GenericDoc

    class Two(BaseDocs):
        def docs_iter(self) -> Any:
            return iter([GenericDoc("1", "x"), GenericDoc("2", "y")])

    name = "chamfer-two-documents"
    if name not in ir_datasets.registry:
        ir_datasets.registry.register(name, ir_datasets.Dataset(Two()))
    assert list(read_corpus(f"ir_datasets:{name}")) == [Document("1", "x"), Document("2", "y")]


def test_lines_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(lines(RECORDS))
    assert count_lines(str(tmp_path)) == 3
    assert count_lines(str(tmp_path / "corpus.jsonl")) == 3
    assert count_lines("ir_datasets:x") is None


def test_queries_and_judgements_are_read(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(lines([{"_id": "1", "text": "who?"}]))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t2\n")
    (tmp_path / "qrels" / "trec.tsv").write_text("1 0 a 2\n")
    assert read_queries(tmp_path) == [Query("1", "who?")]
    assert read_qrels(tmp_path, "test") == read_qrels(tmp_path, "trec") == [("1", "a", 2)]
    with pytest.raises(NotFound, match="splits there: test, trec"):
        read_qrels(tmp_path, "dev")


def test_a_bad_judgement_is_named(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\tmuch\n")
    with pytest.raises(InvalidInput, match=r"test\.tsv:2: found"):
        read_qrels(tmp_path, "test")


def test_integer_ids_become_strings() -> None:
    assert document_from({"id": 7, "text": "x"}).doc_id == "7"
