"""Images in requests: which sources are read, and that a request cannot choose which host the service contacts."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support_judges import picture

from chamfer.core.errors import ChamferError, InvalidInput, Unavailable
from chamfer.service.http.config import ImageConfig
from chamfer.service.http.errors import TooLarge
from chamfer.service.http.image_inputs import looks_like_image, read_image

PICTURE = picture(3)


@pytest.fixture
def host() -> Iterator[tuple[str, list[str]]]:
    """A web server of images and of hostile responses: (HOST:PORT, the requested paths)."""
    requested: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", f"http://{self.headers['host']}/picture")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/none" else 200)
            self.end_headers()
            if self.path == "/picture":
                self.wfile.write(PICTURE)
            elif self.path == "/endless":
                self.wfile.write(b"x" * 300_000)
            elif self.path == "/slow":
                time.sleep(0.6)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()
    thread.join()


def read(source: str, **config: Any) -> bytes:
    return asyncio.run(read_image(source, ImageConfig(**config)))


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def test_a_data_uri_gives_its_bytes() -> None:
    assert read(uri(PICTURE)) == PICTURE


@pytest.mark.parametrize(
    "source",
    [
        "data:text/html;base64,PGI+",
        "data:image/png,rohdaten",
        "data:image/png;base64,%%%",
        "file:///etc/passwd",
        "ftp://host/a.png",
        "no address at all",
        "http://",
        "//host/a.png",
        "http://[::1",
    ],
)
def test_other_sources_are_refused(source: str) -> None:
    with pytest.raises(InvalidInput):
        read(source, hosts=("host", "etc"))


def test_a_data_uri_beyond_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLarge, match="100 bytes"):
        read(uri(b"x" * 200), max_bytes=100)


def test_an_image_is_fetched_from_an_allowed_host(host: tuple[str, list[str]]) -> None:
    assert read(f"http://{host[0]}/picture", hosts=(host[0],)) == PICTURE


@pytest.mark.parametrize("listed", [(), ("example.org",), ("127.0.0.1",), ("127.0.0.1:1",)])
def test_no_request_is_sent_to_a_host_that_is_not_listed(host: tuple[str, list[str]], listed: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"images\.hosts"):
        read(f"http://{host[0]}/picture", hosts=listed)
    assert not host[1]


@pytest.mark.parametrize("trick", ["http://{good}@{evil}/picture", "http://{good}#@{evil}/", "http://{evil}/?{good}"])
def test_a_listed_host_name_elsewhere_in_the_url_does_not_allow_it(host: tuple[str, list[str]], trick: str) -> None:
    with pytest.raises(ChamferError):
        read(trick.format(good="good.example", evil=host[0]), hosts=("good.example",), seconds=0.5)
    assert not host[1]


def test_a_redirect_is_not_followed(host: tuple[str, list[str]]) -> None:
    with pytest.raises(InvalidInput, match="redirects"):
        read(f"http://{host[0]}/away", hosts=(host[0],))
    assert host[1] == ["/away"]


def test_size_time_and_status_are_limited(host: tuple[str, list[str]]) -> None:
    with pytest.raises(TooLarge):
        read(f"http://{host[0]}/endless", hosts=(host[0],), max_bytes=1000)
    with pytest.raises(Unavailable, match="within"):
        read(f"http://{host[0]}/slow", hosts=(host[0],), seconds=0.2)
    with pytest.raises(InvalidInput, match="404"):
        read(f"http://{host[0]}/none", hosts=(host[0],))


def test_an_image_uri_is_distinguished_from_text() -> None:
    for address in ("http://a/b.png", " https://a/b.JPEG?x=1 ", "data:image/png;base64,AA"):
        assert looks_like_image(address)
    for text in ("see http://a/b.png for more", "http://a/b.html", "a data:image/png", ""):
        assert not looks_like_image(text)
