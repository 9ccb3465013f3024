"""The score cache: which pairs are equal, what is cached, the size limit, and that results equal the reranker's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_encoders import HashEncoder

from chamfer.core.errors import Internal, InvalidInput
from chamfer.core.protocols import Pair
from chamfer.core.types import F32, Document, Query
from chamfer.models.rerankers.maxsim import MaxSimReranker
from chamfer.models.rerankers.score_cache import ENTRY_BYTES, CachedReranker, ScoreCache, pair_keys

QUERY = Query("q", "w1 w2 w3")
DOCUMENTS = [Document(f"d{i}", f"w{i} w{i + 1} w{2 * i}") for i in range(6)]


class Counting:
    """Scores by length; records the number of pairs of each call."""

    name = "counting"
    reads_images = True
    score_kind = "logit"

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint = fingerprint
        self.call_sizes: list[int] = []

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        raise AssertionError("expected a call of score_pairs")

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        self.call_sizes.append(len(pairs))
        values = [np.nan if "nan" in d.text else len(q.text) + 10.0 * len(d.content) for q, d in pairs]
        return np.asarray(values, dtype=np.float32)


def test_a_pair_is_scored_once_whatever_its_doc_id() -> None:
    inner = Counting()
    cached = CachedReranker(inner, ScoreCache(1 << 20))
    first = cached.score(QUERY, DOCUMENTS)
    again = cached.score(Query("other id", QUERY.text), [*DOCUMENTS, Document("x", DOCUMENTS[0].text)])
    assert inner.call_sizes == [6]
    assert again.tolist() == [*first.tolist(), first[0]]


def test_a_pair_that_occurs_twice_in_one_call_is_scored_once() -> None:
    inner = Counting()
    scores = CachedReranker(inner, ScoreCache(1 << 20)).score(QUERY, [DOCUMENTS[0], DOCUMENTS[5], DOCUMENTS[0]])
    assert inner.call_sizes == [2]
    assert scores[0] == scores[2] != scores[1]


def test_models_queries_titles_and_images_have_different_keys() -> None:
    documents = [
        Document("d", "b", "a"),
        Document("d", "ab"),
        Document("d", "a b", image=b"1"),
        Document("d", "a b", image=b"2"),
        Document("d", "", image=b"a b"),
    ]
    queries = [QUERY, Query("q", "w1"), Query("q", "w1", image=b"1")]
    keys = [key for name in ("m", "n") for q in queries for key in pair_keys(name, [(q, d) for d in documents])]
    assert len(set(keys)) == 2 * 3 * 5
    same_as_first = Document("e", "a b")  # models read title and text as one string
    assert pair_keys("m", [(QUERY, same_as_first)]) == keys[:1]


def test_a_changed_image_file_is_scored_again(tmp_path: Path) -> None:
    import os

    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = pair_keys("m", [(QUERY, Document("d", image=path))])
    os.utime(path, (1, 1))
    assert pair_keys("m", [(QUERY, Document("d", image=path))]) != before


def test_the_least_recently_used_scores_are_evicted_first() -> None:
    cache = ScoreCache(3 * ENTRY_BYTES)
    keys = [bytes([i]) for i in range(4)]
    cache.put(keys[:3], np.arange(3, dtype=np.float32))
    cache.get(keys[:1])
    cache.put(keys[3:], np.ones(1, dtype=np.float32))
    assert len(cache) == 3
    assert cache.n_bytes <= 3 * ENTRY_BYTES
    assert np.isnan(cache.get(keys)).tolist() == [False, True, False, False]
    assert (cache.hits, cache.misses) == (4, 1)


def test_the_estimated_bytes_of_an_entry_are_not_too_low() -> None:
    import tracemalloc

    cache, n = ScoreCache(1 << 30), 20_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache.put([i.to_bytes(16, "big") for i in range(n)], np.arange(n, dtype=np.float32))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.5 * taken < cache.n_bytes
    assert taken < 1.2 * cache.n_bytes


def test_scores_that_are_not_finite_are_not_kept() -> None:
    inner = Counting()
    cached = CachedReranker(inner, ScoreCache(1 << 20))
    for _ in range(2):
        with pytest.raises(Internal, match="'bad'"):
            cached.score(QUERY, [Document("good", "w"), Document("bad", "nan")])
    assert inner.call_sizes == [2, 1]


def test_zero_bytes_disable_the_cache_and_negative_bytes_are_refused() -> None:
    inner = Counting()
    cached = CachedReranker(inner, ScoreCache(0))
    assert cached.score(QUERY, DOCUMENTS).tolist() == cached.score(QUERY, DOCUMENTS).tolist()
    assert inner.call_sizes == [6, 6]
    with pytest.raises(InvalidInput):
        ScoreCache(-1)


def test_threads_share_the_cache_without_loss() -> None:
    cache = ScoreCache(100 * ENTRY_BYTES)
    cached = CachedReranker(Counting(), cache)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            documents = [Document("d", "x" * int(n)) for n in rng.integers(1, 200, 10)]
            scores = cached.score(QUERY, documents)
            if scores.tolist() != [len(QUERY.text) + 10.0 * len(d.text) for d in documents]:
                wrong.append(scores)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) <= 100


def test_maxsim_as_a_reranker_is_the_training_kernels_maxsim() -> None:
    import torch

    from chamfer.core.types import VectorKind
    from chamfer.models.networks.maxsim import maxsim

    encoder = HashEncoder()
    documents = [*DOCUMENTS, Document("empty", "")]
    scores = MaxSimReranker(encoder).score(QUERY, documents)
    q = encoder.encode_queries([QUERY], [VectorKind.TOKENS]).tokens
    assert q is not None
    for document, score in zip(documents, scores.tolist(), strict=True):
        d = encoder.encode_documents([document], [VectorKind.TOKENS]).tokens
        assert d is not None
        tensors = [torch.from_numpy(v.values)[None] for v in (q, d)]
        masks = [torch.ones(t.shape[:2], dtype=torch.bool) for t in tensors]
        wanted = maxsim(tensors[0], masks[0], tensors[1], masks[1]) if len(d.values) else torch.zeros(1)
        assert score == pytest.approx(float(wanted.sum()), abs=1e-5)


def test_maxsim_encodes_each_text_once() -> None:
    encoder = HashEncoder()
    other = Query("p", "w5")
    MaxSimReranker(encoder).score_pairs([(q, d) for q in (QUERY, other) for d in DOCUMENTS])
    assert encoder.calls == 2
