"""Training groups of the `mini` models: queries with candidates of the hybrid first stage, labels and teacher scores.

    python -m recipes.prepare DATA --out var/mini

DATA holds BEIR folders (fairytaleqa, scifact, nl2bash, medquad). Only their train splits are read, their dev splits
for choosing; never a test query, a test judgement or anything made from one. Writes documents.parquet and
groups.parquet as models.training.groups reads them, and the vectors of `mini` as OUT/SET.npz, where they are found
again: by the next run, and by the heads that learn from token vectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from chamfer.protocols import Encoder
from chamfer.types import F32, Candidates, Document, Query, VectorKind
from indexing.corpus import read_corpus, read_qrels, read_queries
from indexing.family import SegmentPart
from indexing.sparse.lexical import LexicalConfig, LexicalFamily
from models.backbone import DeviceConfig
from models.registry import load_encoder
from models.training.groups import Group, write_documents, write_groups
from service.fusion import interpolate
from service.plans import FIRST_STAGE_WEIGHTS

DEPTH = 100
KEPT = 50


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set: how many train and dev queries of it (by hash), which share of its titles, and its peculiarities.

    `titles` asks with the titles of documents for their bodies; `topical` drops negatives whose title is that of a
    positive (medquad: unjudged answers on the same topic).
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
    options.out.mkdir(parents=True, exist_ok=True)
    groups: list[Group] = []
    documents: dict[str, str] = {}
    for source in SOURCES:
        scaled = replace(source, train=int(source.train * options.scale))
        for group, texts in mine(scaled, options.data / source.folder, options.out):
            groups.append(group)
            documents |= texts
        print(f"{source.name}: {len(groups):,} groups, {len(documents):,} documents so far", flush=True)
    write_documents(options.out / "documents.parquet", [(list(documents), list(documents.values()))])
    write_groups(options.out / "groups.parquet", groups)


def mine(source: Source, folder: Path, out: Path) -> Iterator[tuple[Group, dict[str, str]]]:
    """Every group of a source, and the texts that it names."""
    documents = [d for d in read_corpus(str(folder)) if _place(d.title or d.doc_id) < source.share]
    if source.titles:
        documents = [d for d in documents if d.title and d.text]
    queries, relevant, split_of = _questions(source, folder, documents)
    vectors, query_vectors = _dense(folder, documents, queries, out)
    if source.titles:
        documents = [replace(d, title="") for d in documents]
    title_of = [d.title for d in documents]
    row_of = {d.doc_id: row for row, d in enumerate(documents)}
    bm25 = _bm25(documents, [q.text for q in queries])
    similarity = query_vectors @ vectors.T
    for number, query in enumerate(queries):
        own = [row_of[doc_id] for doc_id in sorted(relevant[query.query_id])]
        lexical = dict(zip(*(a.tolist() for a in bm25.of(number)), strict=True))
        rows = _first_stage(lexical, similarity[number])
        if source.titles:
            rows = [row for row in rows if row not in own]
        if source.topical:
            topics = {title_of[row] for row in own}
            rows = [row for row in rows if row in own or title_of[row] not in topics]
        rows = rows[:KEPT]
        rows += [row for row in own if row not in rows]
        ids = [f"{source.name}/{documents[row].doc_id}" for row in rows]
        group = Group(
            query_id=f"{source.name}/{query.query_id}",
            query=query.text,
            source=source.name,
            split=split_of[query.query_id],
            doc_ids=ids,
            labels=[float(row in own) for row in rows],
            teachers={
                "bm25": [float(lexical.get(row, 0.0)) for row in rows],
                "dense": [float(similarity[number, row]) for row in rows],
            },
        )
        yield group, {key: documents[row].content for key, row in zip(ids, rows, strict=True)}


def _questions(
    source: Source, folder: Path, documents: Sequence[Document]
) -> tuple[list[Query], dict[str, set[str]], dict[str, str]]:
    """Queries in order of the hash of their ids, what is relevant to each, and train or dev."""
    there = {d.doc_id for d in documents}
    if source.titles:
        chosen = sorted(documents, key=lambda d: _place(d.doc_id))[: source.train]
        queries = [Query(d.doc_id, d.title) for d in chosen]
        return queries, {d.doc_id: {d.doc_id} for d in chosen}, {d.doc_id: "train" for d in chosen}
    texts = {q.query_id: q for q in read_queries(folder)}
    relevant: dict[str, set[str]] = {}
    splits: dict[str, str] = {}
    for split, most in (("dev", source.dev), ("train", source.train)):
        if not most:
            continue
        judged: dict[str, set[str]] = {}
        for query_id, doc_id, grade in read_qrels(folder, source.dev_split if split == "dev" else "train"):
            if grade > 0 and doc_id in there and query_id not in relevant:
                judged.setdefault(query_id, set()).add(doc_id)
        for query_id in sorted(judged, key=_place)[:most]:
            relevant[query_id] = judged[query_id]
            splits[query_id] = split
    return [texts[query_id] for query_id in relevant], relevant, splits


def _dense(folder: Path, documents: Sequence[Document], queries: Sequence[Query], out: Path) -> tuple[F32, F32]:
    """Unit vectors f32 of both. OUT/FOLDER.npz keeps them, and the token vectors that heads learn from."""
    encoder = load_encoder("mini", DeviceConfig())
    kept = out / f"{folder.name}.npz"
    if not kept.exists():
        _keep(kept, encoder, documents, queries)
    with np.load(kept) as file:
        found = dict(zip(file["doc_ids"].tolist(), file["dense"], strict=True))
        asked = dict(zip(file["query_ids"].tolist(), file["q_dense"], strict=True))
    missing = [query for query in queries if query.query_id not in asked]
    dense = encoder.encode_queries(missing, [VectorKind.DENSE]).dense
    assert dense is not None
    asked |= {query.query_id: vector for query, vector in zip(missing, dense.values, strict=True)}
    return np.stack([found[d.doc_id] for d in documents]), np.stack([asked[q.query_id] for q in queries])


def _keep(path: Path, encoder: Encoder, documents: Sequence[Document], queries: Sequence[Query]) -> None:
    """Writes dense and token vectors of both sides."""
    kinds = (VectorKind.DENSE, VectorKind.TOKENS)
    own, asked = encoder.encode_documents(documents, kinds), encoder.encode_queries(queries, kinds)
    arrays = {"doc_ids": np.array([d.doc_id for d in documents]), "query_ids": np.array([q.query_id for q in queries])}
    for prefix, encoding in (("", own), ("q_", asked)):
        assert encoding.dense is not None
        assert encoding.tokens is not None
        arrays |= {
            f"{prefix}dense": encoding.dense.values,
            f"{prefix}tokens": encoding.tokens.values.astype(np.float16),
            f"{prefix}offsets": encoding.tokens.offsets,
        }
    written = path.with_name(f".{path.name}")  # renamed, so that a link is replaced and not followed
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


def _place(name: str) -> float:
    """A fixed pseudo-random place in [0, 1) of a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


if __name__ == "__main__":
    main()
