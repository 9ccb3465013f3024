"""Images in requests: data URIs, and URLs of hosts that the settings name.

A service that fetches what strangers name can be sent to its own network. So: no host that is not listed, no
redirect, no name and password, no proxy, and limits on bytes and time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass

import httpx

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.service.http.errors import FieldError, InvalidBody, TooLarge

_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,")
_LOOKS_LIKE_IMAGE = re.compile(
    r"\s*(data:image/|https?://\S+\.(png|jpe?g|webp|gif|bmp|tiff?)(\?\S*)?\s*$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """hosts        whose URLs are fetched, each HOST or HOST:PORT; none: only data URIs are read
    max_bytes    of one image
    max_images   of one request
    seconds      for fetching one image
    """

    hosts: tuple[str, ...] = ()
    max_bytes: int = 10 << 20
    max_images: int = 64
    seconds: float = 5.0


def looks_like_image(text: str) -> bool:
    """Whether a plain text is the address of an image: scoring its characters would fail without a word."""
    return _LOOKS_LIKE_IMAGE.match(text[:4096]) is not None


async def read_image(source: str, config: ImageConfig) -> bytes:
    """The bytes behind a data URI or an allowed URL; what they hold is looked at by the model that reads them.

    Raises InvalidInput for another source, TooLarge, and Unavailable where the host does not answer in time.
    """
    if source.startswith("data:"):
        return _from_data_uri(source, config)
    url = _allowed(source, config)
    try:
        async with asyncio.timeout(config.seconds):
            return await _fetch(url, config)
    except TimeoutError:
        raise Unavailable(f"{url.host} did not send the image within {config.seconds} s") from None
    except httpx.HTTPError as error:
        raise Unavailable(f"{url.host} did not send the image ({type(error).__name__})") from error


async def read_image_at(place: str, source: str, config: ImageConfig) -> bytes:
    """As `read_image`, with the JSON pointer `place` in what it says is wrong with the source: InvalidBody."""
    try:
        return await read_image(source, config)
    except TooLarge:
        raise
    except InvalidInput as error:
        raise InvalidBody([FieldError(place, error.detail)]) from None


def _from_data_uri(source: str, config: ImageConfig) -> bytes:
    start = _DATA_URI.match(source)
    if start is None:
        raise InvalidInput("an image's data URI does not begin with data:image/TYPE;base64,")
    if (len(source) - start.end()) * 3 // 4 > config.max_bytes + 3:
        raise _too_large(config)
    try:
        return base64.b64decode(source[start.end() :], validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"an image's data URI is not base64: {error}") from None


def _allowed(source: str, config: ImageConfig) -> httpx.URL:
    try:
        url = httpx.URL(source)
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput("an image is neither a data URI nor a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("an image is neither a data URI nor a URL of http or https")
    if url.userinfo:
        raise InvalidInput("an image's URL holds a name or password")
    place = url.host if url.port is None else f"{url.host}:{url.port}"
    if place not in config.hosts:
        raise InvalidInput(
            f"images are not fetched from {place[:200]!r}; service.reranking.images.hosts lists the hosts"
        )
    return url


async def _fetch(url: httpx.URL, config: ImageConfig) -> bytes:
    client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=config.seconds)
    async with client, client.stream("GET", url) as response:
        if response.is_redirect:
            raise InvalidInput(f"{url.host} sends the image's request elsewhere, and redirects are not followed")
        if response.status_code != 200:
            raise InvalidInput(f"{url.host} answered the image's request with status {response.status_code}")
        content = b""
        async for part in response.aiter_bytes():
            content += part
            if len(content) > config.max_bytes:
                raise _too_large(config)
        return content


def _too_large(config: ImageConfig) -> TooLarge:
    return TooLarge(f"an image has more than {config.max_bytes} bytes (service.reranking.images.max_bytes)")
