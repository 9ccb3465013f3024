"""Late-interaction kernels: FDE encoding and MaxSim compared with other libraries and with bare matrix products.

CPU time of one thread, interleaved. Peers (`python -m benchmarks.peers.install`) run in processes of their own over the
same files. The vectors are synthetic unit vectors clustered around topics. "fp32 product" is the matrix product that
MaxSim needs, without the maximum and the sum. A floor is the number of operations divided by the rate of a square
matrix product.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness import Row, compare, emit, parser, titled
from benchmarks.peers import HOME, Peer
from chamfer.core.types import F32, I64
from chamfer.indexing.kernels.centroids import train
from chamfer.indexing.kernels.codes import TokenCodec, encode, learn_step, maxsim_codes
from chamfer.indexing.kernels.fde import FdeShape, Projection, draw_matrices, encode_documents, encode_queries
from chamfer.indexing.kernels.maxsim import maxsim_fast

Run = Callable[[], object]
DIM, QUERY, TOKENS = 128, 32, 109
SQUARE = 1024
SHAPES = ((20, 5, 16), (20, 4, 8))


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--peers", type=Path, default=HOME, help="environment created by benchmarks.peers.install")
    options = arguments.parse_args()
    n, rounds = (100, 3) if options.quick else (300, 9)
    rows: list[Row] = []
    with threadpool_limits(1):
        for shape in SHAPES:
            rows += fde_documents(shape, n, rounds, options.peers)
            rows += fde_query(shape, rounds, options.peers)
        rows += maxsim(QUERY, TOKENS, 1000, rounds, options.peers)
        rows += maxsim(8, 32, 1000, rounds, options.peers)
    emit(rows, options.json)


def fde_documents(shape: tuple[int, int, int], n: int, rounds: int, home: Path) -> list[Row]:
    """Encodes n documents with either projection."""
    values, offsets = _texts(n, TOKENS)
    ours: dict[str, Run] = {}
    kinds: tuple[Projection, Projection] = ("count_sketch", "dense")
    for projection in kinds:
        fde_shape = FdeShape(*shape, projection)
        ours[f"chamfer {projection}"] = partial(
            encode_documents, values, offsets, draw_matrices(fde_shape, DIM, 1), fde_shape
        )
    arrays = {"tokens": values, "offsets": offsets, "shape": np.array(shape)}
    names = ["muvera-fde documents", "muvfde documents", "pymuvera documents", "muvera-rs documents"]
    seconds = _in_turn(ours, names, arrays, rounds, home)
    title = f"FDE of {_dim(shape):,} dimensions, a document of {TOKENS} tokens x {DIM}"
    rows = titled(title, compare(seconds, n, "us", _peer(seconds)))
    hashing = 2 * TOKENS * DIM * shape[0] * shape[1] / _rate(np.float32)
    rows.append(Row(f"{title}: floor, the float32 products of SimHash", hashing * 1e6, "us"))
    return rows


def fde_query(shape: tuple[int, int, int], rounds: int, home: Path) -> list[Row]:
    """Encodes one query; Chamfer encodes it 100 times a run, because one encoding is too short for the clock."""
    query = _texts(1, QUERY)[0]
    ends, times = np.array([0, QUERY]), 100
    ours: dict[str, Run] = {}
    kinds: tuple[Projection, Projection] = ("count_sketch", "dense")
    for projection in kinds:
        fde_shape = FdeShape(*shape, projection)
        encode = partial(encode_queries, query, ends, draw_matrices(fde_shape, DIM, 1), fde_shape)
        ours[f"chamfer {projection}"] = partial(_repeat, encode, times)
    seconds = _in_turn(ours, ["muvera-fde query"], {"query": query, "shape": np.array(shape)}, rounds, home)
    for name in ours:
        seconds[name] = [total / times for total in seconds[name]]
    title = f"FDE of {_dim(shape):,} dimensions, a query of {QUERY} tokens x {DIM}"
    return titled(title, compare(seconds, 1, "us", _peer(seconds)))


def maxsim(n_query: int, tokens: int, n: int, rounds: int, home: Path) -> list[Row]:
    """Scores one query against n documents."""
    values, offsets = _texts(n, tokens)
    query, rows = _texts(1, n_query, seed=1)[0], np.arange(n)
    halves = values.astype(np.float16)
    centroids = train(values, 1, 1)
    codec = TokenCodec(centroids, learn_step(values, centroids, 8), 8)
    codes, _, scales = encode(values, codec)
    coded = codes, np.empty(0, np.uint16), scales
    ours: dict[str, Run] = {
        "fp32 product": lambda: values @ query.T,
        "chamfer float16": partial(maxsim_fast, query, halves, offsets, rows),
        "chamfer int8": partial(maxsim_codes, query, coded, codec, offsets, rows),
    }
    names = ["fast-maxsim maxsim", "maxsim-cpu maxsim"]
    seconds = _in_turn(ours, names, {"tokens": values, "offsets": offsets, "query": query}, rounds, home)
    title = f"MaxSim, {n_query} query tokens, {n:,} documents of {tokens} x {DIM}"
    figures = []
    for peer in [name for name in seconds if not name.startswith("chamfer")]:
        chosen = {name: times for name, times in seconds.items() if name.startswith("chamfer") or name == peer}
        figures += titled(title, compare(chosen, 1, "ms", peer))
    flop = 2.0 * n_query * tokens * n * DIM
    figures += [Row(f"{title}: floor, {kind}", 1e3 * flop / _rate(kind), "ms") for kind in ("float32", "bfloat16")]
    return figures


def _in_turn(
    ours: Mapping[str, Run], tasks: list[str], arrays: Mapping[str, Any], rounds: int, home: Path
) -> dict[str, list[float]]:
    """Seconds of every round by name: first the installed peers, then ours."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        peers = []
        if (home / "bin" / "python").exists():
            peers = [stack.enter_context(Peer(home, task, folder)) for task in tasks]
        for peer in peers:
            if not peer.ready:
                print(f"{peer.task}: does not run on this machine and is left out", file=sys.stderr)
        runs = {peer.task.split()[0]: peer.seconds for peer in peers if peer.ready}
        runs |= {name: partial(_seconds, run) for name, run in ours.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                duration = run()
                if turn:  # the first turn warms up
                    seconds[name].append(duration)
    return seconds


def _peer(seconds: Mapping[str, object]) -> str:
    return next(iter(seconds))


def _seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _repeat(run: Run, times: int) -> None:
    for _ in range(times):
        run()


def _rate(kind: Any) -> float:
    """Operations per second of a square matrix product."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(SQUARE, SQUARE).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    return 2.0 * SQUARE**3 / float(np.median([_seconds(lambda: matrix @ matrix) for _ in range(7)]))


def _texts(n: int, tokens: int, seed: int = 0) -> tuple[F32, I64]:
    """n texts of `tokens` unit vectors, each around 8 of 500 topics: (values f32 [n * tokens, 128], offsets)."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((500, DIM)).astype(np.float32)
    chosen = rng.integers(0, 500, (n, 8))[np.arange(n)[:, None], rng.integers(0, 8, (n, tokens))]
    values = topics[chosen.ravel()] + rng.standard_normal((n * tokens, DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values, np.arange(0, n * tokens + 1, tokens).astype(np.int64)


def _dim(shape: tuple[int, int, int]) -> int:
    return FdeShape(*shape).dim


if __name__ == "__main__":
    main()
