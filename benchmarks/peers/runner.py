"""Runs in the environment of the peers: `runner.py TASK FOLDER`; prints the CPU seconds of one run per input line.

FOLDER has tokens.npy f32 [T, d], offsets.npy i64 [N+1], query.npy f32 [Tq, d] and shape.npy i64 [3]: (R, k, p). Each
peer gets its preferred input, prepared before the clock starts: contiguous float32 arrays, one per document.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Task = Callable[[dict[str, Any]], Callable[[], object]]


def muvera_fde(data: dict[str, Any], texts: list[Any], *, average: bool) -> Callable[[], object]:
    import muvera_fde as peer

    repetitions, k, p = map(int, data["shape"])
    config = peer.FixedDimensionalEncodingConfig(
        dimension=texts[0].shape[1],
        num_repetitions=repetitions,
        num_simhash_projections=k,
        projection_dimension=p,
        projection_type=peer.ProjectionType.AMS_SKETCH,
        encoding_type=peer.EncodingType.AVERAGE if average else peer.EncodingType.DEFAULT_SUM,
        fill_empty_partitions=average,
    )
    encoder = peer.FixedDimensionalEncoder(config)
    return lambda: [encoder.encode(text) for text in texts]


def muvfde(data: dict[str, Any], texts: list[Any], *, average: bool) -> Callable[[], object]:
    import muvfde as peer

    repetitions, k, p = map(int, data["shape"])
    config = peer.fixed_dimensional_encoding_config().set_num_repetitions(repetitions).set_num_simhash_projections(k)
    config = config.set_projection_dimension(p).set_projection_type(peer.projection_type.AMS_SKETCH)
    config = config.enable_fill_empty(average)
    config = config.set_encoding_type(peer.encoding_type.AVERAGE if average else peer.encoding_type.DEFAULT_SUM)
    return lambda: [peer.generate_fixed_dimensional_encoding(text, config) for text in texts]


def pymuvera(data: dict[str, Any], texts: list[Any], *, average: bool) -> Callable[[], object]:
    from pymuvera import MUVERAEncoder, ProjectionType

    repetitions, k, p = map(int, data["shape"])
    encoder = MUVERAEncoder(
        dimension=texts[0].shape[1],
        num_simhash_projections=k,
        num_repetitions=repetitions,
        projection_type=ProjectionType.AMS_SKETCH,
        projection_dimension=p,
        fill_empty_partitions=average,
    )
    encode = encoder.encode_document if average else encoder.encode_query
    return lambda: [encode(text) for text in texts]


def muvera_rs(data: dict[str, Any], texts: list[Any], *, average: bool) -> Callable[[], object]:
    """muvera-rs cannot encode without storing, so each run fills a new index from the nested lists that it expects."""
    if not average:
        raise ValueError("muvera-rs cannot encode a query without searching; expected the task 'muvera-rs documents'")
    from muvera import MuveraRetriever

    repetitions, k, p = map(int, data["shape"])
    lists, ids = [text.tolist() for text in texts], list(range(1, len(texts) + 1))
    sizes = texts[0].shape[1], len(texts), p, repetitions * 2**k * p, k, repetitions, 1
    return lambda: MuveraRetriever(*sizes).index_dataset(lists, ids)


def maxsim(name: str) -> Task:
    def made(data: dict[str, Any]) -> Callable[[], object]:
        peer, texts, query = __import__(name), documents(data), data["query"]
        return lambda: peer.maxsim_scores_variable(query, texts)

    return made


def documents(data: dict[str, Any]) -> list[Any]:
    offsets = data["offsets"]
    return [np.ascontiguousarray(data["tokens"][a:b]) for a, b in pairwise(offsets)]


TASKS: dict[str, Task] = {
    "fast-maxsim maxsim": maxsim("fast_maxsim"),
    "maxsim-cpu maxsim": maxsim("maxsim_cpu"),
}
ENCODERS: dict[str, Callable[..., Callable[[], object]]] = {
    "muvera-fde": muvera_fde,
    "muvfde": muvfde,
    "pymuvera": pymuvera,
    "muvera-rs": muvera_rs,
}


def task(name: str, data: dict[str, Any]) -> Callable[[], object]:
    """The function that runs the task `PEER documents`, `PEER query` or `PEER maxsim` once."""
    peer, _, part = name.partition(" ")
    if part == "maxsim":
        return TASKS[name](data)
    return ENCODERS[peer](
        data, documents(data) if part == "documents" else [data["query"]], average=part == "documents"
    )


def main() -> None:
    """Prints `ready`, then answers every input line with the seconds of a run."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    data = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    run = task(name, data)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        run()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
