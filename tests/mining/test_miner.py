"""Mining over a small collection: the files written, resuming after an interruption, and the judge's guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support_encoders import HashEncoder

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, Document, Query
from chamfer.indexing.building.builder import BuildConfig, build
from chamfer.indexing.collection.collection import Collection
from chamfer.mining import pool_tables
from chamfer.mining.config import MiningConfig
from chamfer.mining.features import pair_scorer
from chamfer.mining.miner import JudgedQuery, MiningReport, mine
from chamfer.mining.teacher_scores import judge_file
from chamfer.models.training.data.groups import Group, add_images, write_documents, write_groups
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import parse_plan
from chamfer.service.search.request import SearchRequest, SearchResult
from chamfer.service.search.searcher import Searcher

ANIMALS = ("fox", "crow", "ant", "lion", "hare", "wolf", "dog", "mouse", "frog", "stork")
PLACES = ("hill", "river", "garden", "castle", "market")
CONFIG = MiningConfig(depth=30, consistency=30, keep=4, stride=2, block=3, twin=None)


class WordReranker:
    """The logit of the share of the query's words that a document has."""

    name = fingerprint = "words"
    reads_images = False
    score_kind = "logit"

    def __init__(self, fail_after: int = 10**9) -> None:
        self.pairs = 0
        self.fail_after = fail_after

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        return self.score_pairs([(query, document) for document in documents])

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> F32:
        self.pairs += len(pairs)
        if self.pairs > self.fail_after:
            raise KeyboardInterrupt
        shares = [len({*q.text.split()} & {*d.text.split()}) / len(q.text.split()) for q, d in pairs]
        return np.array([8 * share - 4 for share in shares], dtype=np.float32)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    documents = [
        Document(f"{animal}-{place}", f"the {animal} went up to the {place} and met a {animal} of the {place} there")
        for animal in ANIMALS
        for place in PLACES
    ]
    twin = documents[0]
    documents.append(replace(twin, doc_id="copy", text=f"{twin.text} again"))
    path = tmp_path_factory.mktemp("mining") / "tales"
    encoder = HashEncoder(limit=32)
    build(documents, path, encoder=encoder, config=BuildConfig(channels=("dense", "lexical")))
    with Searcher(Pipeline(Collection.open(path), encoder)) as opened:
        yield opened


def judged_queries() -> list[JudgedQuery]:
    return [
        JudgedQuery(Query(f"q{n}", f"why did the {animal} see the hill"), (f"{animal}-hill",))
        for n, animal in enumerate(ANIMALS)
    ]


def run(
    searcher: Searcher, out: Path, config: MiningConfig = CONFIG, judge: WordReranker | None = None
) -> MiningReport:
    return mine(searcher, judged_queries(), out, config, judge=judge, labels=("tales", "train"))


def test_every_candidate_is_logged_with_features_and_fate(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    report = run(searcher, out, judge=WordReranker())
    rows = pq.read_table(out).to_pylist()
    assert [row["query_id"] for row in rows] == [f"q{n}" for n in range(10)]
    for row in rows:
        n = len(row["doc_ids"])
        assert n >= 30
        for name in (
            "labels",
            "fates",
            "rank",
            "score",
            "dense.score",
            "lexical.rank",
            "fuse.score",
            "overlap",
            "judge",
        ):
            assert len(row[name]) == n
        assert row["fates"].count("kept") <= 4
        assert [fate == "positive" for fate in row["fates"]] == [label == 1.0 for label in row["labels"]]
        assert 0 < min(row["judge"]) <= max(row["judge"]) < 1
    assert sum(report.fates.values()) == sum(len(row["doc_ids"]) for row in rows)


def test_groups_have_positives_then_negatives_and_all_their_texts(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    report = run(searcher, out)
    groups = pq.read_table(pool_tables.groups_path(out)).to_pylist()
    texts = dict(zip(*pq.read_table(pool_tables.documents_path(out)).to_pydict().values(), strict=True))
    assert len(groups) == report.groups == 10
    for row, query in zip(groups, judged_queries(), strict=True):
        assert row["doc_ids"][0] == query.relevant[0]
        assert row["labels"] == [1.0] + [0.0] * 4
        assert len(set(row["doc_ids"])) == 5
        assert all(texts[doc_id].startswith("the ") for doc_id in row["doc_ids"])


def test_a_near_duplicate_of_the_positive_is_dropped(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    run(searcher, out)
    row = pq.read_table(out).to_pylist()[0]
    assert row["fates"][row["doc_ids"].index("copy")] == "duplicate"


def test_candidates_that_the_judge_scores_near_the_positive_are_dropped(searcher: Searcher, tmp_path: Path) -> None:
    run(searcher, tmp_path / "mined.parquet", replace(CONFIG, beta=0.01, duplicate=None), WordReranker())
    for row in pq.read_table(tmp_path / "mined.parquet").to_pylist():
        positive = row["judge"][row["fates"].index("positive")]
        for fate, judge in zip(row["fates"], row["judge"], strict=True):
            assert fate == "positive" or (fate == "judge") == (judge > positive - np.float32(0.01))


def test_a_query_whose_positive_ranks_too_low_gives_no_group(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    queries = [*judged_queries()[:2], JudgedQuery(Query("odd", "why did the fox see the hill"), ("stork-market",))]
    report = mine(searcher, queries, out, replace(CONFIG, consistency=3))
    assert set(pq.read_table(out).to_pylist()[2]["fates"]) == {"positive", "inconsistent"}
    assert report.groups == 2


def test_a_positive_that_was_not_retrieved_is_in_the_pool_without_a_rank(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    mine(
        searcher,
        [JudgedQuery(Query("odd", "why did the fox see the hill"), ("stork-market",))],
        out,
        replace(CONFIG, depth=5, consistency=0),
    )
    row = pq.read_table(out).to_pylist()[0]
    assert row["doc_ids"][-1] == "stork-market"
    assert np.isnan(row["rank"][-1])
    assert row["labels"] == [0.0] * (len(row["labels"]) - 1) + [1.0]


def test_candidates_outside_the_nearest_clusters_are_dropped(searcher: Searcher, tmp_path: Path) -> None:
    run(searcher, tmp_path / "mined.parquet", replace(CONFIG, clusters=6, nearest=2, duplicate=None))
    for row in pq.read_table(tmp_path / "mined.parquet").to_pylist():
        for fate, cluster_rank in zip(row["fates"], row["cluster"], strict=True):
            assert (fate == "cluster") == (cluster_rank > 2 and fate != "positive")


def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(searcher: Searcher, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    run(searcher, whole, judge=WordReranker())
    with pytest.raises(KeyboardInterrupt):
        run(searcher, killed, judge=WordReranker(fail_after=200))  # in the third of four blocks
    assert not killed.exists()
    report = run(searcher, killed, judge=WordReranker())
    assert report.reused_blocks == 2
    for path in (lambda p: p, pool_tables.groups_path, pool_tables.documents_path):
        assert path(killed).read_bytes() == path(whole).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_another_configuration_does_not_reuse_blocks(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(searcher, out, judge=WordReranker(fail_after=200))
    assert run(searcher, out, replace(CONFIG, keep=3), WordReranker()).reused_blocks == 0


def test_a_plan_with_feedback_has_features_of_both_rounds(searcher: Searcher) -> None:
    plan = {"channels": {"dense": {}, "lexical": {}}, "feedback": {"channels": {"dense": {}}, "guard": None}}
    request = SearchRequest(query="why did the fox see the hill", k=2, plan=parse_plan(plan), pool=20)
    [result] = searcher.pipeline.run([request])
    assert isinstance(result, SearchResult)
    assert result.pool is not None
    features = result.pool.features()
    assert {"dense.rank", "dense.again.rank", "lexical.score", "fuse.score", "fuse_again.score"} <= set(features)
    assert len(result.pool.doc_ids) == len(features["dense.again.score"]) == 20
    assert [hit.doc_id for hit in result.hits] == list(result.pool.doc_ids[:2])


def test_an_unknown_corpus_and_an_unknown_feature_are_rejected(searcher: Searcher, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    with pytest.raises(InvalidInput, match="none of the 1 queries has a relevant document"):
        mine(searcher, [JudgedQuery(Query("q", "fox"), ("nowhere",))], out, CONFIG)
    with pytest.raises(InvalidInput, match=r"margins compare the feature 'sparse.score'.*dense.score"):
        run(searcher, out, replace(CONFIG, margin=0.1, by="sparse.score"))


def test_judging_mined_groups_adds_a_column_aligned_with_doc_ids(searcher: Searcher, tmp_path: Path) -> None:
    out, scored = tmp_path / "mined.parquet", tmp_path / "judged.parquet"
    run(searcher, out)
    count = judge_file(pool_tables.groups_path(out), scored, WordReranker(), column="words", block=4)
    rows = pq.read_table(scored).to_pylist()
    assert count == sum(len(row["doc_ids"]) for row in rows) == 50
    row = rows[0]
    assert row["words"][0] == pytest.approx(
        1 / (1 + np.exp(-(8 * 3 / 7 - 4))), rel=1e-6
    )  # the, fox, hill of seven words


def test_each_distinct_pair_is_judged_once_even_across_a_resumed_run(tmp_path: Path) -> None:
    import pyarrow as pa

    source, out = tmp_path / "pairs.parquet", tmp_path / "judged.parquet"
    pq.write_table(pa.table({"query": ["a b"] * 6, "text": ["a", "b", "a b", "c", "a", "a"]}), source)
    with pytest.raises(KeyboardInterrupt):
        judge_file(source, out, WordReranker(fail_after=3), block=2)
    again = WordReranker()
    assert judge_file(source, out, again, block=2) == 6
    assert again.pairs == 3  # the second block's two, and the text that only the unread first block had
    expected = 1 / (1 + np.exp(-(8 * np.array([0.5, 0.5, 1.0, 0.0, 0.5, 0.5]) - 4)))
    np.testing.assert_allclose(pq.read_table(out)["judge"].to_numpy(), expected, rtol=1e-6)


def test_a_listwise_judge_scores_the_documents_of_a_query_together() -> None:
    class Listwise:
        name = fingerprint = "lists"
        reads_images = False
        score_kind = "list"

        def __init__(self) -> None:
            self.lists: list[tuple[str, list[str]]] = []

        def score(self, query: Query, documents: Sequence[Document]) -> F32:
            self.lists.append((query.query_id, [document.doc_id for document in documents]))
            return np.arange(len(documents), dtype=np.float32)

    judge = Listwise()
    pairs = [(Query(query_id, "fox"), Document(doc_id, "tail")) for query_id, doc_id in ("pa", "pb", "qc", "qb", "pd")]
    scores = pair_scorer(judge, cache_bytes=1 << 20)(pairs)
    assert judge.lists == [("p", ["a", "b"]), ("q", ["c", "b"]), ("p", ["d"])]
    assert scores.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_only_a_cache_spares_a_repeated_pair(cache_bytes: int) -> None:
    judge = WordReranker()
    pair = (Query("q", "a b"), Document("d", "a"))
    scores = pair_scorer(judge, cache_bytes)([pair, pair])
    assert judge.pairs == (1 if cache_bytes else 2)
    assert scores.tolist() == [pytest.approx(0.5), pytest.approx(0.5)]


def test_pairs_without_text_are_rejected(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"query": ["a"], "answer": ["b"]}), tmp_path / "pairs.parquet")
    with pytest.raises(InvalidInput, match="row 0 has neither text nor image"):
        judge_file(tmp_path / "pairs.parquet", tmp_path / "out.parquet", WordReranker())


def test_wrong_modality_negatives_outrank_the_positive_and_others_share_its_modality(tmp_path: Path) -> None:
    """Images of the right place outrank the relevant text; the other filters do not drop them."""
    documents = [
        Document(f"{kind}-{place}", f"{words} {place}", metadata={"kind": kind})
        for place in PLACES
        for kind, words in (("image", "fox hill castle at the"), ("text", "a long tale of a fox that came to the"))
    ]
    encoder = HashEncoder(limit=32)
    build(documents, tmp_path / "mixed", encoder=encoder, config=BuildConfig(channels=("dense", "lexical")))
    config = replace(CONFIG, depth=10, consistency=10, modality="kind", wrong=2, stride=1, duplicate=None, margin=0.0)
    with Searcher(Pipeline(Collection.open(tmp_path / "mixed"), encoder)) as searcher:
        mine(
            searcher,
            [JudgedQuery(Query("q", "fox hill castle at the river"), ("text-river",))],
            tmp_path / "m.parquet",
            config,
        )
    [row] = pq.read_table(tmp_path / "m.parquet").to_pylist()
    by_id = dict(zip(row["doc_ids"], zip(row["fates"], row["modality"], row["rank"], strict=True), strict=True))
    rank = by_id["text-river"][2]
    wrong = [doc_id for doc_id, (fate, _, _) in by_id.items() if fate == "wrong_modality"]
    assert len(wrong) == 2
    for doc_id, (fate, modality, place) in by_id.items():
        assert modality == float(doc_id.startswith("image"))
        assert fate != "wrong_modality" or (modality == 1 and place < rank)
        assert fate != "kept" or modality == 0
    [group] = pq.read_table(pool_tables.groups_path(tmp_path / "m.parquet")).to_pylist()
    assert group["doc_ids"][0] == "text-river"
    assert set(wrong) <= set(group["doc_ids"])
    assert group["modality"][0] == 0


def test_a_reranker_that_reads_images_receives_the_images_of_groups(tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(b"query")
    group = Group("q", "which one", ["a", "b"], [1.0, 0.0], query_image=Path("query.png"))
    write_groups(tmp_path / "g.groups.parquet", [group])
    write_documents(tmp_path / "g.documents.parquet", [(["a", "b"], ["one", "two"])])
    add_images(tmp_path / "g.documents.parquet", {"b": b"picture"})
    seen: list[tuple[object, object]] = []

    class Seeing(WordReranker):
        reads_images = True

        def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> F32:
            seen.extend((query.image, document.image) for query, document in pairs)
            return super().score_pairs(pairs)

    assert judge_file(tmp_path / "g.groups.parquet", tmp_path / "out.parquet", Seeing()) == 2
    assert set(seen) == {(tmp_path / "query.png", None), (tmp_path / "query.png", b"picture")}
