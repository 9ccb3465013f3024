"""Server CPU per request of the HTTP application around a pipeline that costs nothing, and a soak test.

    python -m benchmarks.http [--quick] [--json]
    python -m benchmarks.http --soak 60

The server runs in its own process under uvicorn (uvloop, httptools). The client, in this process, holds keep-alive
connections over loopback. CPU time is that of all threads of the server process. The body has ten hits of about 300
characters. A pipeline that costs nothing runs on the event loop; "by worker thread" is the path of searches that take
longer than `batching.inline_ms`, one millisecond by default.

Peers return the same body: a raw ASGI application that only parses and writes JSON, and FastAPI as in its tutorial,
with a plain `def` endpoint and a pydantic model for the request.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
import psutil  # type: ignore[import-untyped]  # ships no types
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks import harness
from benchmarks.harness import Row
from chamfer.core.errors import ChamferError
from chamfer.core.types import I64, Bool, Document, Hit
from chamfer.service.http.app import create_app
from chamfer.service.http.config import ServerConfig
from chamfer.service.runtime.batching import BatchingConfig
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import ChannelPlan, Plan
from chamfer.service.search.presets import ResolvedPlan
from chamfer.service.search.request import SearchRequest, SearchResult

PATH = "/v1/collections/demo/search"
REQUEST = orjson.dumps({"query": "Why did the fox lose his tail?", "k": 10, "plan": "balanced"})
STAGES = {"encode": 4.0, "retrieve:dense": 1.0, "retrieve:lexical": 1.0, "fuse": 0.2, "documents": 0.1}
OURS = ("chamfer", "chamfer by worker thread")
PEERS = ("raw ASGI", "FastAPI def")
TEXT = "One day a fox found himself in a trap, and got away only by leaving his tail behind. " * 3


class CannedCollection:
    """An empty collection."""

    snapshot = "snapshot-000001"
    channels: dict[str, Any] = {}  # noqa: RUF012  # never modified
    n_rows = 0
    encoder_name = encoder_fingerprint = None
    bytes_per_document = 0.0

    def __len__(self) -> int:
        return 0

    def bytes_by_part(self) -> dict[str, int]:
        return {}

    def allowed(self, _condition: Any, /) -> Bool | None:
        return None

    def documents(self, _rows: I64, /) -> list[Document]:
        return []

    def doc_ids(self, _rows: I64, /) -> list[str]:
        return []

    def close(self) -> None:
        pass


class CannedPipeline(Pipeline):
    """Answers every request immediately with the same ten hits."""

    def __init__(self) -> None:
        super().__init__(CannedCollection(), None)
        plan = Plan(channels={"dense": ChannelPlan(weight=0.6), "lexical": ChannelPlan(weight=0.4)})
        documents = [Document(f"passage-{n}", TEXT, f"The fox, part {n}", {"page": n}) for n in range(10)]
        self._result = SearchResult(
            hits=tuple(Hit(d.doc_id, n + 1, float(np.float32(1 / (n + 1))), d) for n, d in enumerate(documents)),
            timings_ms=STAGES,
            snapshot=self.snapshot,
            degraded=(),
            truncated_query=False,
            plan=ResolvedPlan("balanced", plan),
        )

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchResult | ChamferError]:
        return [self._result] * len(requests)


def chamfer_app(inline_ms: float = 1.0) -> Any:
    """The application of the service over the canned pipeline."""
    config = ServerConfig(batching=BatchingConfig(inline_ms=inline_ms))
    return create_app({"demo": Path("unused")}, config, lambda _: CannedPipeline())


def canned_body() -> dict[str, Any]:
    """The body with which the application answers."""
    from chamfer.service.http.search_responses import search_answer

    [result] = CannedPipeline().run([SearchRequest(query="fox")])
    assert isinstance(result, SearchResult)
    return search_answer(result, collection="demo", request_id="0" * 16, queue_ms=0.1, total_ms=6.5)


def raw_app() -> Any:
    """The least work that an application can do to return the same body."""
    body = canned_body()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["method"] == "POST":
            orjson.loads((await receive())["body"])
        content = orjson.dumps(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


class PlainRequest(BaseModel):
    query: str
    k: int = 10
    plan: str = "balanced"


def plain_app() -> Any:
    """FastAPI with a plain function as its endpoint."""
    app, body = FastAPI(), canned_body()

    @app.post("/v1/collections/{name}/search")
    def search(name: str, request: PlainRequest) -> dict[str, Any]:
        return body

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        return {}

    return app


MAKERS: Mapping[str, Callable[[], Any]] = {
    "chamfer": chamfer_app,
    "chamfer by worker thread": partial(chamfer_app, inline_ms=0.0),
    "raw ASGI": raw_app,
    "FastAPI def": plain_app,
}


def serve(name: str, port: int) -> None:
    """Runs the named application; the main function of the server process."""
    import uvicorn

    app = MAKERS[name]()
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False)


@dataclass(frozen=True, slots=True)
class Load:
    """CPU time, latencies and errors of a period of load."""

    requests: int
    errors: int
    cpu_seconds: float
    latencies_ms: list[float]

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / max(self.requests, 1) * 1e6


class Server:
    """A server process, as a context manager."""

    def __init__(self, name: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.http", "--serve", name, "--port", str(self.port)]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
        self.process = psutil.Process(self._process.pid)

    def __enter__(self) -> Server:
        for _ in range(400):
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if b" 200 " in probe.recv(64):
                        return self
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError("the server did not become ready within 20 s")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def load(self, connections: int, seconds: float, body: bytes = REQUEST) -> Load:
        """Sends requests for `seconds` over each connection, the next one after the answer to the last."""
        before = self.cpu_seconds()
        latencies, errors = asyncio.run(_drive(self.port, connections, seconds, body))
        return Load(len(latencies), errors, self.cpu_seconds() - before, latencies)


async def _drive(port: int, connections: int, seconds: float, body: bytes) -> tuple[list[float], int]:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    request, end = head.encode() + body, time.perf_counter() + seconds
    latencies: list[float] = []
    errors = 0

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            latencies.append((time.perf_counter() - started) * 1e3)
            errors += not answer.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()

    results = await asyncio.gather(*(client() for _ in range(connections)), return_exceptions=True)
    return latencies, errors + sum(isinstance(result, Exception) for result in results)


def measure(*, quick: bool) -> list[Row]:
    """CPU per request of all applications, interleaved so that other load on the machine affects all of them alike."""
    rounds, seconds = (3, 0.8) if quick else (7, 4.0)
    rows = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name)) for name in MAKERS}
        for server in servers.values():
            server.load(4, 1.0)
        for connections in (1, 16, 64):
            costs = _costs(servers, connections, rounds, seconds)
            what = f"server CPU per request, {connections} connection{'s' if connections > 1 else ''}"
            rows += [
                Row(f"{ours}: {what}", costs[ours], "us", peer, costs[peer] / costs[ours])
                for ours in OURS
                for peer in PEERS
            ]
            rows += [Row(f"{peer}: {what}", costs[peer], "us") for peer in PEERS]
    return rows


def _costs(servers: Mapping[str, Server], connections: int, rounds: int, seconds: float) -> dict[str, float]:
    """Median CPU microseconds per request of each server."""
    costs: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            load = server.load(connections, seconds)
            if load.errors:
                raise RuntimeError(f"{load.errors} of {load.requests} requests to {name} failed")
            costs[name].append(load.cpu_us)
    return {name: median(values) for name, values in costs.items()}


def soak(seconds: float, clients: int = 64) -> list[Row]:
    """Load by many clients for `seconds`: errors, latency and memory growth, after a warm-up of a tenth of the time."""
    with Server("chamfer by worker thread") as server:
        server.load(clients, max(2.0, seconds / 10))
        before = server.process.memory_info().rss
        load = server.load(clients, seconds)
        growth = (server.process.memory_info().rss - before) / 2**20
    what = f"{clients} clients for {seconds:.0f} s"
    return [
        Row(f"{what}: requests", load.requests, "requests"),
        Row(f"{what}: errors", load.errors, "errors"),
        Row(f"{what}: growth of resident memory", growth, "MiB"),
        Row(f"{what}: p50", float(np.percentile(load.latencies_ms, 50)), "ms"),
        Row(f"{what}: p99", float(np.percentile(load.latencies_ms, 99)), "ms"),
    ]


def main() -> None:
    """Runs the benchmark, or the server process of one."""
    parser = harness.parser(__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="run only the soak test: 64 concurrent clients for SECONDS"
    )
    parser.add_argument("--serve", choices=MAKERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    if options.soak:
        rows = soak(options.soak)
    elif options.quick:
        rows = measure(quick=True)
    else:
        rows = measure(quick=False) + soak(60)
    harness.emit(rows, options.json)


if __name__ == "__main__":
    main()
