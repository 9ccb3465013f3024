"""A small server that implements every remote protocol, with configurable faults.

A score counts the query's words in the document and adds a digest of its image, which shows that both arrived.
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from chamfer.core.types import Document, Query


def relevance(query: str, text: str, image: bytes | None) -> float:
    """A logit."""
    seen = blake2b(image, digest_size=2).digest()[0] / 256 if image else 0.0
    return len(set(query.lower().split()) & set(text.lower().split())) - 1.0 + seen


def expected(query: Query, document: Document) -> float:
    image = document.image
    assert not isinstance(query.image, bytes)
    return relevance(query.text, document.content, image if isinstance(image, bytes) else None)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _from_uri(uri: str) -> bytes:
    assert uri.startswith("data:image/png;base64,")
    return base64.b64decode(uri.partition(",")[2])


def _read(part: Any) -> tuple[str, bytes | None]:
    if isinstance(part, str):
        return part, None
    if "content" in part:
        texts = [p["text"] for p in part["content"] if p["type"] == "text"]
        images = [_from_uri(p["image_url"]["url"]) for p in part["content"] if p["type"] == "image_url"]
        return " ".join(texts), images[0] if images else None
    return part.get("text", ""), _from_uri(part["image"]) if "image" in part else None


def _reranked(body: Any, texts: Any, *, kind: str) -> list[dict[str, Any]]:
    query, _ = _read(body["query"])
    logits = [relevance(query, *_read(text)) for text in texts]
    values = logits if kind == "logit" else [sigmoid(value) for value in logits]
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [{"index": i, "value": values[i]} for i in order]


def _chat(body: Any) -> Any:
    assert body["logprobs"] is True
    assert body["max_tokens"] == 1
    content = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(p["text"] for p in parts if p["type"] == "text")
    images = [_from_uri(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"]
    query, _, document = text.rpartition("<Query>:")[2].partition("<Document>:")
    p = sigmoid(relevance(query, document, images[0] if images else None))
    listed = [{"token": "yes", "logprob": math.log(0.8 * p)}, {"token": " No", "logprob": math.log(0.8 * (1 - p))}]
    listed += [{"token": "maybe", "logprob": math.log(0.2)}]
    return {"choices": [{"logprobs": {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": listed}]}}]}


class RerankServer:
    """`faults` are the first responses, one per request: (status, headers). `bodies` are the received requests."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.answer: Any = None
        self.bodies: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def reply(self, path: str, body: Any) -> Any:
        if self.answer is not None:
            return self.answer
        if path == "/v1/chat/completions":
            return _chat(body)
        if path == "/score":
            entries = _reranked({"query": body["text_1"]}, body["text_2"], kind="probability")
            return {"data": [{"index": e["index"], "score": e["value"]} for e in entries]}
        if "texts" in body:
            assert body["raw_scores"] is True
            entries = _reranked(body, body["texts"], kind="logit")
            return [{"index": e["index"], "score": e["value"]} for e in entries]
        entries = _reranked(body, body["documents"], kind="probability")
        return {"results": [{"index": e["index"], "relevance_score": e["value"]} for e in entries]}


@contextmanager
def rerank_server() -> Iterator[RerankServer]:
    """The server on a free loopback port."""
    served = RerankServer()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            served.bodies.append((self.path, body))
            served.headers.append({key.lower(): value for key, value in self.headers.items()})
            status, headers = served.faults.pop(0) if served.faults else (200, {})
            content = json.dumps(served.reply(self.path, body)).encode() if status == 200 else b'{"message": "no"}'
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
