"""Training groups of the `mini` models: queries with candidates of the hybrid first stage, labels and teacher scores.

    python -m recipes.prepare DATA --out var/mini

DATA holds BEIR folders (fairytaleqa, scifact, nl2bash, medquad). Training reads their train splits and model selection
their dev splits; no test query, test judgement or anything derived from one is used. Writes documents.parquet and
groups.parquet as chamfer.models.training.data.groups reads them, and the vectors of `mini` as OUT/SOURCE.npz for the
heads that learn from token vectors. Teachers are `bm25`, `dense`, and `maxsim` over the untrained 384-dimensional
token vectors. An interrupted run resumes with the first missing block of texts; complete sources are reused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from chamfer.core.artifact import digest_of, discard_temporaries, find_artifact, remove_directory, write_artifact
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder
from chamfer.core.types import F32, Candidates, Document, Query
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.families.inverted.bm25 import LexicalConfig, LexicalFamily
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
from chamfer.models.training.data.groups import Group, read_documents, read_groups, write_documents, write_groups
from chamfer.service.search.fusion import interpolate
from chamfer.service.search.presets import FIRST_STAGE_WEIGHTS
from recipes.vectors import Encoded, encoded

DEPTH = 100  # candidates of either retriever
GROUP_SIZE = 50  # candidates of a group, before missing positives
TEACHERS = ("bm25", "dense", "maxsim")
_MINED_SOURCE = "mined-source"
GROUPS, DOCUMENTS = "groups.parquet", "documents.parquet"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A BEIR set: its number of train and dev queries (chosen by hash), and how it is prepared.

    dev_split   split from which the dev queries come
    share       fraction of the documents, by the hash of their titles
    titles      whether the titles of documents are the queries for their bodies
    topical     whether to drop negatives with the title of a positive (medquad: unjudged answers on the same topic)
    """

    name: str
    folder: str
    train: int
    dev: int = 0
    dev_split: str = "dev"
    share: float = 1.0
    titles: bool = False
    topical: bool = False


SOURCES = (
    Source(name="fairytaleqa", folder="fairytaleqa", train=8548, dev=300),
    Source(name="scifact", folder="scifact", train=700, dev=100, dev_split="train"),
    Source(name="scifact-titles", folder="scifact", train=2000, titles=True),
    Source(name="nl2bash", folder="nl2bash", train=2500, dev=150),
    Source(name="medquad", folder="medquad", train=3000, dev=100, dev_split="train", share=0.3, topical=True),
)


def main() -> None:
    """Writes the groups and documents of all sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("var/mini"))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of training queries")
    options = parser.parse_args()
    encoder = load_encoder("mini-384", DeviceConfig())
    groups: list[Group] = []
    documents: dict[str, str] = {}
    for source in SOURCES:
        scaled = replace(source, train=max(1, round(source.train * options.scale)))
        mined_groups, texts = mined(scaled, options.data / source.folder, options.out, encoder)
        groups += mined_groups
        documents |= texts
        print(f"{source.name}: {len(groups):,} groups, {len(documents):,} documents so far", flush=True)
    write_documents(options.out / DOCUMENTS, [(list(documents), list(documents.values()))])
    write_groups(options.out / GROUPS, groups)


def mined(source: Source, folder: Path, out: Path, encoder: Encoder) -> tuple[list[Group], dict[str, str]]:
    """The groups of a source and their texts by doc_id, read from `out` or computed and stored there.

    OUT/SOURCE.npz gets the vectors that heads learn from; the raw ones are deleted once the source is complete.
    """
    data = _read_source(source, folder)
    if not data.queries:
        raise InvalidInput(f"{folder} has no query in its train split with a relevant document in its corpus")
    vectors, raw = out / f"{source.name}.npz", out / ".raw" / source.name
    stored = out / ".sources" / f"{source.name}-{_identity(source, data, encoder)[:40]}"
    if find_artifact(stored, _MINED_SOURCE) is None or not vectors.exists():
        for directory in (raw, stored.parent):
            discard_temporaries(directory)
        remove_directory(stored)
        documents = encoded(encoder, [d.content for d in data.documents], raw)
        queries = encoded(encoder, [q.text for q in data.queries], raw)
        _write_vectors(vectors, data, documents, queries)
        with write_artifact(stored, _MINED_SOURCE, {}) as writer:
            groups = list(_groups(source, data, documents, queries))
            named = {doc_id for group in groups for doc_id in group.doc_ids}
            texts = {key: d.content for d in data.documents if (key := f"{source.name}/{d.doc_id}") in named}
            write_documents(writer.path(DOCUMENTS), [(list(texts), list(texts.values()))])
            write_groups(writer.path(GROUPS), groups)
    remove_directory(raw)
    return read_groups(stored / GROUPS), read_documents(stored / DOCUMENTS)


def _identity(source: Source, data: SourceData, encoder: Encoder) -> str:
    """A digest of everything that the groups of a source depend on."""
    texts = [[d.doc_id, d.title, d.text] for d in data.documents], [[q.query_id, q.text] for q in data.queries]
    relevant = {query_id: sorted(doc_ids) for query_id, doc_ids in data.relevant.items()}
    return digest_of(asdict(source), DEPTH, GROUP_SIZE, TEACHERS, encoder.spec.fingerprint, *texts, relevant)


def _groups(source: Source, data: SourceData, vectors: Encoded, query_vectors: Encoded) -> Iterator[Group]:
    """A group for every query: the candidates of the first stage, followed by missing positives."""
    documents = data.documents
    title_of = [d.title for d in documents]
    row_of = {d.doc_id: row for row, d in enumerate(documents)}
    bm25 = _bm25(documents, [q.text for q in data.queries])
    similarity = query_vectors.dense @ vectors.dense.T
    for number, query in enumerate(data.queries):
        positives = [row_of[doc_id] for doc_id in sorted(data.relevant[query.query_id])]
        lexical = dict(zip(*(a.tolist() for a in bm25.of(number)), strict=True))
        rows = _first_stage(lexical, similarity[number])
        if source.titles:
            rows = [row for row in rows if row not in positives]
        if source.topical:
            topics = {title_of[row] for row in positives}
            rows = [row for row in rows if row in positives or title_of[row] not in topics]
        rows = rows[:GROUP_SIZE]
        rows += [row for row in positives if row not in rows]
        yield Group(
            query_id=f"{source.name}/{query.query_id}",
            query=query.text,
            source=source.name,
            split=data.split_of[query.query_id],
            doc_ids=[f"{source.name}/{documents[row].doc_id}" for row in rows],
            labels=[float(row in positives) for row in rows],
            teachers={
                "bm25": [float(lexical.get(row, 0.0)) for row in rows],
                "dense": [float(similarity[number, row]) for row in rows],
                "maxsim": vectors.maxsim(query_vectors.tokens(number), rows).tolist(),
            },
        )


@dataclass(frozen=True, slots=True)
class SourceData:
    """Documents and queries of a source; by query_id the relevant doc_ids and the split, train or dev."""

    documents: Sequence[Document]
    queries: Sequence[Query]
    relevant: dict[str, set[str]]
    split_of: dict[str, str]


def _read_source(source: Source, folder: Path) -> SourceData:
    """Queries in the order of the hashes of their ids; if titles are the queries, documents lose theirs."""
    documents = [d for d in read_corpus(str(folder)) if _hash_of(d.title or d.doc_id) < source.share]
    if source.titles:
        documents = [d for d in documents if d.title and d.text]
        chosen = sorted(documents, key=lambda d: _hash_of(d.doc_id))[: source.train]
        queries = [Query(d.doc_id, d.title) for d in chosen]
        bodies = [replace(d, title="") for d in documents]
        return SourceData(
            bodies, queries, {q.query_id: {q.query_id} for q in queries}, {q.query_id: "train" for q in queries}
        )
    corpus = {d.doc_id for d in documents}
    texts = {q.query_id: q for q in read_queries(folder)}
    relevant: dict[str, set[str]] = {}
    splits: dict[str, str] = {}
    for split, limit in (("dev", source.dev), ("train", source.train)):
        if not limit:
            continue
        positives: dict[str, set[str]] = {}
        for query_id, doc_id, grade in read_qrels(folder, source.dev_split if split == "dev" else "train"):
            if grade > 0 and doc_id in corpus and query_id not in relevant:
                positives.setdefault(query_id, set()).add(doc_id)
        for query_id in sorted(positives, key=_hash_of)[:limit]:
            relevant[query_id] = positives[query_id]
            splits[query_id] = split
    return SourceData(documents, [texts[query_id] for query_id in relevant], relevant, splits)


def _write_vectors(path: Path, data: SourceData, documents: Encoded, queries: Encoded) -> None:
    """Writes the dense vectors and the token vectors of `mini` of documents and queries."""
    arrays = {
        "doc_ids": np.array([d.doc_id for d in data.documents]),
        "query_ids": np.array([q.query_id for q in data.queries]),
    }
    for prefix, vectors in (("", documents), ("q_", queries)):
        arrays[f"{prefix}dense"] = vectors.dense
        arrays[f"{prefix}tokens"], arrays[f"{prefix}offsets"] = vectors.projected()
    written = path.with_name(f".{path.name}")  # renamed, so that a symbolic link is replaced rather than followed
    np.savez(written, **arrays)  # type: ignore[arg-type]  # the stubs take names for flags
    written.rename(path)


def _bm25(documents: Sequence[Document], texts: Sequence[str]) -> Candidates:
    family = LexicalFamily(LexicalConfig())
    retriever = family.open([SegmentPart(family.pack(documents, None), None, len(documents))])
    return retriever.search(retriever.encode_queries(texts), 2 * DEPTH)


def _first_stage(lexical: dict[int, float], similarity: F32) -> list[int]:
    """The rows of the preset `balanced`, best first."""
    first = sorted(lexical, key=lambda row: -lexical[row])[:DEPTH]
    near = np.argsort(-similarity, kind="stable")[:DEPTH]
    runs = {
        "lexical": _candidates(first, [lexical[row] for row in first]),
        "dense": _candidates(near.tolist(), similarity[near].tolist()),
    }
    rows, _ = interpolate(runs, {name: FIRST_STAGE_WEIGHTS[name] for name in runs}).candidates.of(0)
    return [int(row) for row in rows]


def _candidates(rows: Sequence[int], scores: Sequence[float]) -> Candidates:
    return Candidates(np.array([rows], dtype=np.int64), np.array([scores], dtype=np.float32))


def _hash_of(name: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


if __name__ == "__main__":
    main()
