"""GPU throughput: FDE encoding and an exact scan of a million encodings against the memory bandwidth, MaxSim against
a matrix product, and the rate of whole builds with the encoder's share of the time.

    python -m benchmarks.gpu [--quick] [--json]

Median wall time between synchronisations. Token vectors are synthetic unit vectors, 109 of 128 dimensions per document;
builds use the shipped corpus. Without a CUDA device the benchmark says so and measures nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Row, demo_corpus, emit, parser

if TYPE_CHECKING:
    from torch import Tensor

    from chamfer.core.protocols import Encoder, EncoderSpec
    from chamfer.core.types import Document, Encoding, Query, VectorKind

TOKENS, DIM, QUERY_TOKENS = 109, 128, 32
ROUNDS = 7


def main() -> None:
    """Runs the benchmark; without a CUDA device it reports that it is skipped."""
    options = parser(__doc__).parse_args()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks.gpu: skipped: torch sees no CUDA device, so nothing was measured", file=sys.stderr)
        emit([], options.json)
        return
    scale = 10 if options.quick else 1
    bandwidth = copy_bandwidth()
    name = torch.cuda.get_device_name()
    rows = [Row(f"{name}: copy bandwidth, read and written", bandwidth, "GB/s")]
    rows += encoding(20_000 // scale, bandwidth)
    rows += maxsim(100_000 // scale)
    rows += scan(1_000_000 // scale, bandwidth)
    emit(rows + build_rate(500 if options.quick else None), options.json)


def seconds(run: Callable[[], object]) -> float:
    """Median wall time in seconds, after two rounds that are not counted."""
    import torch

    durations = []
    for number in range(ROUNDS + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number > 1:
            durations.append(time.perf_counter() - begin)
    return float(np.median(durations))


def copy_bandwidth() -> float:
    """GB/s of copying 2 GiB within the device, counting bytes read and bytes written."""
    import torch

    source = torch.empty(1 << 29, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


def encoding(n: int, bandwidth: float) -> list[Row]:
    """FDE encoding of n documents: bytes read and written per second, against the copy bandwidth."""
    from chamfer.indexing.kernels.fde import FdeShape, draw_matrices
    from chamfer.indexing.kernels.fde_torch import encode_documents

    values, offsets = _documents(n)
    rows = []
    for shape in (FdeShape(20, 4, 8), FdeShape(20, 5, 16)):
        matrices = draw_matrices(shape, DIM, 1)

        def run(shape: FdeShape = shape, matrices: object = matrices) -> object:
            return encode_documents(values, offsets, matrices, shape)  # type: ignore[arg-type]

        duration = seconds(run)
        moved = (values.nbytes + 4 * n * shape.dim) / duration / 1e9
        rows.append(Row(f"fde {shape.dim}: encoding, read and written", moved, "GB/s", "copy", moved / bandwidth))
        rows.append(Row(f"fde {shape.dim}: encoding", n / duration, "documents/s"))
    return rows


def maxsim(n: int) -> list[Row]:
    """One query of 32 tokens against n documents, compared with the bare matrix product and a large square one."""
    import torch

    from chamfer.indexing.kernels.fde_torch import maxsim as score

    values, offsets = _documents(n)
    tokens = values.bfloat16()
    query = _unit(QUERY_TOKENS).bfloat16()
    columns = query.T.contiguous()
    ends = torch.tensor([0, QUERY_TOKENS], device="cuda")
    flop = 2 * QUERY_TOKENS * len(tokens) * DIM
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    plain = flop / seconds(lambda: tokens @ columns) / 1e12
    ours = flop / seconds(lambda: score(query, ends, tokens, offsets)) / 1e12
    peak = 2 * 8192**3 / seconds(lambda: square @ square) / 1e12
    return [
        Row("bf16 product of 8192 x 8192", peak, "TFLOP/s"),
        Row("bf16 product of all tokens with the query, no maximum", plain, "TFLOP/s"),
        Row(f"MaxSim of {n:,} documents", ours, "TFLOP/s", "the product", ours / plain),
    ]


def scan(n: int, bandwidth: float, dim: int = 2560, k: int = 100) -> list[Row]:
    """The exact top k of n float16 encodings: bytes read (once per batch) per second, and time per query."""
    import torch

    values = torch.randn(n, dim, device="cuda", dtype=torch.float16)
    rows = []
    for batch in (1, 16, 64):
        queries = torch.randn(batch, dim, device="cuda", dtype=torch.float16)
        duration = seconds(lambda queries=queries: (queries @ values.T).topk(k))  # type: ignore[misc]
        moved = values.nbytes / duration / 1e9
        title = f"exact scan, {n:,} x {dim} float16, best {k}, batch {batch}"
        rows.append(Row(f"{title}: bytes of the encodings", moved, "GB/s", "copy", moved / bandwidth))
        rows.append(Row(f"{title}: a query", duration * 1e3 / batch, "ms"))
    return rows


class _Timed:
    """An encoder that measures the seconds spent on documents."""

    def __init__(self, inner: Encoder) -> None:
        self.inner = inner
        self.seconds = 0.0

    @property
    def spec(self) -> EncoderSpec:
        return self.inner.spec

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        return self.inner.encode_queries(queries, kinds)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        begin = time.perf_counter()
        encoded = self.inner.encode_documents(documents, kinds)
        self.seconds += time.perf_counter() - begin
        return encoded


def build_rate(n: int | None, device: str = "cuda") -> list[Row]:
    """Documents per second of whole builds on the device, and the share of the wall time spent in the encoder."""
    from chamfer.indexing.building.builder import BuildConfig, BuildRun, build
    from chamfer.indexing.building.corpus import read_corpus
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    documents = list(read_corpus(str(demo_corpus())))[:n]
    encoder = _Timed(load_encoder("mini", DeviceConfig(device=device)))  # type: ignore[arg-type]
    encoder.encode_documents(documents[:64], list(encoder.spec.dims))  # warms up
    rows = []
    for channels in (("dense", "multivector"), ("fde", "multivector"), ("lemur", "multivector")):
        encoder.seconds = 0.0
        config = BuildConfig(channels=channels)
        with tempfile.TemporaryDirectory() as folder:
            report = build(documents, Path(folder) / "c", encoder=encoder, config=config, run=BuildRun(device=device))
        share = encoder.seconds / report.seconds
        title = f"build of {' and '.join(channels)}, {len(documents):,} documents"
        rows.append(Row(f"{title} [encoder busy {share:.0%}]", len(documents) / report.seconds, "documents/s"))
    return rows


def _unit(n: int) -> Tensor:
    import torch

    return torch.nn.functional.normalize(torch.randn(n, DIM, device="cuda"), dim=1)


def _documents(n: int) -> tuple[Tensor, Tensor]:
    """Float16 token vectors [T, d] of n documents and their offsets i64 [n + 1]."""
    import torch

    return _unit(n * TOKENS).half(), torch.arange(n + 1, device="cuda") * TOKENS


if __name__ == "__main__":
    main()
