"""Exact search: dense search over all rows and MaxSim over given rows, compared with numpy, torch and faiss.

CPU time of one thread. The vectors are synthetic unit vectors, since the cost does not depend on their values.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness import Row, compare, emit, interleave, parser, titled
from chamfer.core.types import DenseVectors, Encoding, TokenVectors
from chamfer.indexing.families.dense import DenseConfig, DenseFamily
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.rows.segment_part import SegmentPart


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__).parse_args()
    rounds = 3 if options.quick else 15
    with threadpool_limits(1):
        rows = dense(20_000 if options.quick else 100_000, rounds)
        rows += maxsim(1_000, rounds)
    emit(rows, options.json)


def dense(n: int, rounds: int) -> list[Row]:
    """The top 100 of n rows of 384 dimensions, for batches of 1 and of 32 queries."""
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    values = _unit(rng, n, 384)
    family = DenseFamily(DenseConfig())
    retriever = family.open([SegmentPart(family.pack([], _encoding(n, dense=DenseVectors(values))), None, n)])
    index = faiss.IndexFlatIP(384)
    index.add(values)
    rows: list[Row] = []
    for q in (1, 32):
        queries = _unit(rng, q, 384)
        ours = partial(retriever.search, DenseVectors(queries), 100)
        candidates, expected = ours(), index.search(queries, 100)[1]
        same = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(candidates.rows, expected, strict=True)])
        contenders: dict[str, Any] = {
            "faiss IndexFlatIP": partial(index.search, queries, 100),
            "numpy product and argpartition": partial(_numpy_top, values, queries),
            "chamfer dense": ours,
        }
        title = f"dense, {n:,} x 384, {q} queries, top 100"
        rows += titled(title, compare(interleave(contenders, rounds), q, "ms", "faiss IndexFlatIP"))
        rows.append(Row(f"{title}: overlap with faiss", float(same), "share", "faiss IndexFlatIP"))
    return rows


def maxsim(n: int, rounds: int) -> list[Row]:
    """One query of 32 tokens against n documents of 109 tokens, 128 dimensions."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    lengths = rng.integers(80, 139, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = _unit(rng, int(offsets[-1]), 128)
    query = _unit(rng, 32, 128)
    rows = np.arange(n, dtype=np.int64)
    padded = torch.zeros(n, int(lengths.max()), 128)
    mask = torch.zeros(n, int(lengths.max()), dtype=torch.bool)
    for i in range(n):
        padded[i, : lengths[i]] = torch.from_numpy(values[offsets[i] : offsets[i + 1]])
        mask[i, : lengths[i]] = True
    contenders: dict[str, Any] = {
        "numpy product and reduceat": partial(_numpy_maxsim, values, offsets, query),
        "torch padded einsum": partial(_padded, padded, mask, torch.from_numpy(query)),
    }
    queries = TokenVectors(query, np.array([0, 32], dtype=np.int64))
    storages: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    for storage in storages:
        family = MultivectorFamily(MultivectorConfig(storage=storage))
        part = SegmentPart(family.pack([], _encoding(n, tokens=TokenVectors(values, offsets))), None, n)
        contenders[f"chamfer multivector {storage}"] = partial(family.open([part]).score, queries, rows[None])
    title = f"MaxSim, {n:,} documents of {lengths.mean():.0f} tokens x 128, 32 query tokens"
    return titled(title, compare(interleave(contenders, rounds), 1, "ms", "numpy product and reduceat"))


def _encoding(n: int, dense: DenseVectors | None = None, tokens: TokenVectors | None = None) -> Encoding:
    """Wraps synthetic vectors as the result of an encoder; the token counts are not used."""
    return Encoding(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.bool_), dense=dense, tokens=tokens)


def _unit(rng: np.random.Generator, n: int, dim: int) -> Any:
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _numpy_top(values: Any, queries: Any) -> Any:
    scores = queries @ values.T
    top = np.argpartition(-scores, 100, axis=1)[:, :100]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1), 1)


def _numpy_maxsim(values: Any, offsets: Any, query: Any) -> Any:
    return np.maximum.reduceat(values @ query.T, offsets[:-1], axis=0).sum(axis=1)


def _padded(padded: Any, mask: Any, query: Any) -> Any:
    import torch

    products = torch.einsum("ntd,sd->nst", padded, query)
    return products.masked_fill(~mask[:, None, :], float("-inf")).amax(-1).sum(-1)


if __name__ == "__main__":
    main()
