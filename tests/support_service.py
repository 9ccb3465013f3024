"""Fakes for the service: a small collection over a hash encoder, whose every stage can be made to fail or wait."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    F32,
    I64,
    Bool,
    Candidates,
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
)
from chamfer.indexing.collection.filters import Equals
from chamfer.service.search.pipeline import Pipeline

DIM = 16
VOCABULARY = 512

TEXTS = (
    ("The fox without a tail", "A fox lost his tail in a trap and asked all foxes to cut theirs off."),
    ("The crow and the pitcher", "A thirsty crow dropped pebbles into a pitcher until the water rose."),
    ("The ant and the grasshopper", "The ant gathered grain all summer while the grasshopper sang."),
    ("The lion and the mouse", "A mouse gnawed the net and freed the lion who had spared her."),
    ("The tortoise and the hare", "The hare slept and the slow tortoise won the race."),
    ("The wolf in a sheepskin", "A wolf dressed as a sheep was taken for one and eaten by the shepherd."),
    ("The boy who cried wolf", "Nobody came when the wolf really was among the sheep."),
    ("The dog and his shadow", "A dog with a bone snapped at its image in the water and lost both."),
)


def words(text: str) -> list[str]:
    return [word.strip(".,?!").lower() for word in text.split()]


def word_vector(word: str) -> F32:
    """A unit vector that depends on the word alone."""
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def term(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4], "big") % VOCABULARY


class RecordingEncoder:
    """Records its calls and fails on queries that contain `fail_on`. Dense is the mean of the word vectors.

    Truncates queries to eight words.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[VectorKind, ...]]] = []
        self.fail_on = ""

    @property
    def spec(self) -> EncoderSpec:
        dims = {VectorKind.DENSE: DIM, VectorKind.TOKENS: DIM}
        return EncoderSpec(name="hash", dims=dims, query_tokens=8, document_tokens=256, fingerprint="hash")

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        self.calls.append((len(queries), tuple(sorted(kinds))))
        if self.fail_on and any(self.fail_on in query.text for query in queries):
            raise RuntimeError("secret detail of the encoder")
        return encode([query.text for query in queries], kinds, limit=8)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        return encode([document.content for document in documents], kinds, limit=256)


def encode(texts: Sequence[str], kinds: Collection[VectorKind], limit: int) -> Encoding:
    split = [words(text) for text in texts]
    matrices = [np.stack([word_vector(word) for word in row[:limit]]) for row in split]
    offsets = np.cumsum([0, *map(len, matrices)]).astype(np.int64)
    return Encoding(
        n_tokens=np.asarray([len(row) for row in split], dtype=np.int32),
        truncated=np.asarray([len(row) > limit for row in split]),
        dense=DenseVectors(np.stack([m.mean(axis=0) for m in matrices])) if VectorKind.DENSE in kinds else None,
        tokens=TokenVectors(np.concatenate(matrices), offsets) if VectorKind.TOKENS in kinds else None,
    )


def best_rows(scores: F32, k: int, allowed: Bool | None, *, positive: bool = False) -> Candidates:
    """The k best of scores f32 [Q, N] by plain sorting."""
    rows = np.full((len(scores), k), -1, dtype=np.int64)
    kept = np.full((len(scores), k), -np.inf, dtype=np.float32)
    for query, query_scores in enumerate(scores):
        legal = [
            (-float(score), row)
            for row, score in enumerate(query_scores)
            if (allowed is None or allowed[row]) and (score > 0 or not positive)
        ]
        for index, (negative, row) in enumerate(sorted(legal)[:k]):
            rows[query, index], kept[query, index] = row, -negative
    return Candidates(rows, kept)


class _Retriever:
    def __init__(self, n: int) -> None:
        self._n = n
        self.calls: list[tuple[int, int]] = []
        self.before: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self._n

    def stored_form(self, queries: Any) -> Any:
        return queries


class DenseRetriever(_Retriever):
    stored_kind = VectorKind.DENSE

    def __init__(self, documents: Sequence[Document]) -> None:
        super().__init__(len(documents))
        self._values = encode([d.content for d in documents], [VectorKind.DENSE], 256).vectors(VectorKind.DENSE).values  # type: ignore[union-attr]  # dense is among the kinds

    def search(self, queries: DenseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        self.before()
        self.calls.append((len(queries), k))
        scores = np.stack([(self._values * query).sum(axis=1) for query in queries.values]).astype(np.float32)
        return best_rows(scores, k, allowed)

    def vectors(self, rows: I64) -> DenseVectors:
        return DenseVectors(np.ascontiguousarray(self._values[rows]))


class TokenRetriever(_Retriever):
    stored_kind = VectorKind.TOKENS

    def __init__(self, documents: Sequence[Document]) -> None:
        super().__init__(len(documents))
        self._matrices = [np.stack([word_vector(w) for w in words(d.content)]) for d in documents]

    def search(self, queries: TokenVectors, k: int, allowed: Bool | None = None) -> Candidates:
        self.before()
        self.calls.append((len(queries), k))
        every = np.tile(np.arange(self._n, dtype=np.int64), (len(queries), 1))
        return best_rows(self.score(queries, every), k, allowed)

    def score(self, queries: TokenVectors, rows: I64) -> F32:
        self.before()
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for query in range(len(queries)):
            tokens = queries.values[queries.offsets[query] : queries.offsets[query + 1]]
            for index, row in enumerate(rows[query].tolist()):
                if row >= 0:
                    scores[query, index] = (tokens @ self._matrices[row].T).max(axis=1).sum()
        return scores

    def vectors(self, rows: I64) -> TokenVectors:
        matrices = [self._matrices[row] for row in rows]
        return TokenVectors(np.concatenate(matrices), np.cumsum([0, *map(len, matrices)]).astype(np.int64))

    def commonness(self, vectors: F32) -> NDArray[np.float64]:
        return np.mean([(vectors @ m.T).max(axis=1) for m in self._matrices], axis=0, dtype=np.float64)


class LexicalRetriever(_Retriever):
    stored_kind = VectorKind.SPARSE

    def __init__(self, documents: Sequence[Document]) -> None:
        super().__init__(len(documents))
        self._terms = [[term(word) for word in words(d.content)] for d in documents]

    def encode_queries(self, texts: Sequence[str]) -> SparseVectors:
        rows = [sorted({term(word) for word in words(text)}) for text in texts]
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        terms = np.asarray([t for row in rows for t in row], dtype=np.int32)
        return SparseVectors(np.ones(len(terms), dtype=np.float32), terms, offsets, VOCABULARY)

    def search(self, queries: SparseVectors, k: int, allowed: Bool | None = None) -> Candidates:
        self.before()
        self.calls.append((len(queries), k))
        scores = np.zeros((len(queries), self._n), dtype=np.float32)
        for query in range(len(queries)):
            span = slice(queries.offsets[query], queries.offsets[query + 1])
            query_weights = dict(zip(queries.terms[span].tolist(), queries.weights[span].tolist(), strict=True))
            scores[query] = [sum(query_weights.get(t, 0.0) for t in terms) / (5 + len(terms)) for terms in self._terms]
        return best_rows(scores, k, allowed, positive=True)

    def vectors(self, rows: I64) -> SparseVectors:
        counts = [sorted(Counter(self._terms[row]).items()) for row in rows]
        offsets = np.cumsum([0, *map(len, counts)]).astype(np.int64)
        terms, weights = zip(*(pair for count in counts for pair in count), strict=True)
        return SparseVectors(np.asarray(weights, np.float32), np.asarray(terms, np.int32), offsets, VOCABULARY)


@dataclass(frozen=True)
class FakeFamily:
    name: str
    kind: VectorKind | None
    config: Any = None


@dataclass(frozen=True)
class FakeChannel:
    name: str
    family: FakeFamily
    retriever: Any


@dataclass
class FakeCollection:
    """Eight fables, or the given documents, with the channels dense, lexical and multivector."""

    stored: Sequence[Document]
    snapshot: str = "snapshot-000001"
    channels: Mapping[str, FakeChannel] = field(default_factory=dict)
    closed: bool = False
    encoder_name: str | None = "hash"
    encoder_fingerprint: str | None = "hash"
    bytes_per_document: float = 123.0

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def n_rows(self) -> int:
        return len(self.stored)

    def bytes_by_part(self) -> dict[str, int]:
        return {"dense": 512, "documents": 472}

    def allowed(self, condition: Any) -> Bool | None:
        """Supports an equality condition, and functions of the document."""
        if condition is None:
            return None
        if isinstance(condition, Equals):
            wanted = condition
            return np.asarray([d.metadata.get(wanted.field) == wanted.value for d in self.stored])
        if not callable(condition):
            raise InvalidInput(f"not a condition: {condition!r}")
        return np.asarray([bool(condition(document)) for document in self.stored])

    def documents(self, rows: I64) -> list[Document]:
        if self.closed:
            raise RuntimeError("the collection was closed while it was in use")
        return [self.stored[row] for row in rows.tolist()]

    def doc_ids(self, rows: I64) -> list[str]:
        return [self.stored[row].doc_id for row in rows.tolist()]

    def close(self) -> None:
        self.closed = True


def fables() -> list[Document]:
    return [Document(f"fable-{n}", text, title, {"number": n}) for n, (title, text) in enumerate(TEXTS)]


def collection(
    documents: Sequence[Document] | None = None,
    *,
    channels: Sequence[str] = ("dense", "lexical", "multivector"),
    snapshot: str = "snapshot-000001",
) -> FakeCollection:
    stored = fables() if documents is None else list(documents)
    makers: dict[str, Callable[[], FakeChannel]] = {
        "dense": lambda: FakeChannel("dense", FakeFamily("dense", VectorKind.DENSE), DenseRetriever(stored)),
        "lexical": lambda: FakeChannel("lexical", FakeFamily("lexical", None), LexicalRetriever(stored)),
        "multivector": lambda: FakeChannel(
            "multivector", FakeFamily("multivector", VectorKind.TOKENS), TokenRetriever(stored)
        ),
    }
    return FakeCollection(stored, snapshot, {name: makers[name]() for name in channels})


class LengthReranker:
    """Prefers long documents; scores lists."""

    name = "length"
    fingerprint = "length"
    reads_images = False
    score_kind = "similarity"

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        self.before()
        self.calls.append(len(documents))
        return np.asarray([len(document.text) for document in documents], dtype=np.float32)


class PairReranker:
    """Prefers long documents; scores pairs. Some texts fail: crash, image, nan, down."""

    name = "pairs"
    fingerprint = "pairs"
    reads_images = True
    score_kind = "similarity"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.seen: list[Document] = []
        self.before: Callable[[], object] = lambda: None

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        return self.score_pairs([(query, document) for document in documents])

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> F32:
        self.before()
        self.batches.append(len(pairs))
        self.seen += [document for _, document in pairs]
        for _, document in pairs:
            if "crash" in document.text:
                raise RuntimeError("secret")
            if document.text == "image" or document.image == b"broken":
                raise InvalidInput("an image cannot be read")
            if document.text == "down":
                raise Unavailable("nobody answers")
        values = [np.nan if d.text == "nan" else len(d.text) + len(d.image or b"") for _, d in pairs]  # type: ignore[arg-type]  # bytes
        return np.asarray(values, dtype=np.float32)


class ManualClock:
    """A clock that advances only by `wait`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def pipeline(**options: Any) -> Pipeline:
    """A pipeline over the fables."""
    return Pipeline(
        options.pop("collection", None) or collection(), options.pop("encoder", RecordingEncoder()), **options
    )


@contextmanager
def running_server(app: Any) -> Iterator[str]:
    """The application under uvicorn on a free loopback port; yields its address once it is ready."""
    import httpx
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            for _ in range(200):
                with suppress(httpx.TransportError):
                    if httpx.get(f"{address}/readyz").status_code == 200:
                        break
                time.sleep(0.05)
            yield address
        finally:
            server.should_exit = True
            thread.join()


@asynccontextmanager
async def client_of(app: Any, *, ready: bool = True) -> AsyncIterator[Any]:
    """An httpx client of the application in this process, within its lifespan, after it is ready."""
    import httpx

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        while ready and (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield client


SEARCH = "/v1/collections/fables/search"


def fables_app(load: Callable[[Path], Pipeline] | None = None, path: Path = Path("unused"), **config: Any) -> Any:
    """The application over one collection named fables; its log is discarded."""
    import structlog

    from chamfer.service.http.app import create_app
    from chamfer.service.http.config import ServerConfig

    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
    return create_app({"fables": path}, ServerConfig(**config), load or (lambda _: pipeline()), log=log)


def with_fables(test: Callable[[Any], Awaitable[None]], **options: Any) -> None:
    """Runs an asynchronous test with a client of the fables."""

    async def body() -> None:
        async with client_of(fables_app(**options)) as client:
            await test(client)

    asyncio.run(body())
