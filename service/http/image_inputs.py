"""Images in requests: data URIs, and URLs of the hosts that the settings list.

A service that fetches URLs from requests can be made to access its own network (server-side request forgery).
Therefore only listed hosts are contacted, redirects, credentials in URLs and proxies are not used, and bytes and time
are limited.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re

import httpx

from chamfer.core.errors import InvalidInput, Unavailable
from chamfer.service.http.config import ImageConfig
from chamfer.service.http.errors import FieldError, InvalidBody, TooLarge

_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,")
_LOOKS_LIKE_IMAGE = re.compile(
    r"\s*(data:image/|https?://\S+\.(png|jpe?g|webp|gif|bmp|tiff?)(\?\S*)?\s*$)", re.IGNORECASE
)


def looks_like_image(text: str) -> bool:
    """Whether a plain text is the URI of an image; scoring it as text would silently give a meaningless result."""
    return _LOOKS_LIKE_IMAGE.match(text[:4096]) is not None


async def read_image(source: str, config: ImageConfig) -> bytes:
    """The bytes of a data URI or an allowed URL; they are decoded only by the model that reads them.

    Raises InvalidInput for any other source, TooLarge, and Unavailable if the host does not respond in time.
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


async def read_image_at(pointer: str, source: str, config: ImageConfig) -> bytes:
    """As `read_image`, but an InvalidInput becomes an InvalidBody with the JSON pointer of the image."""
    try:
        return await read_image(source, config)
    except TooLarge:
        raise
    except InvalidInput as error:
        raise InvalidBody([FieldError(pointer, error.detail)]) from None


def _from_data_uri(source: str, config: ImageConfig) -> bytes:
    start = _DATA_URI.match(source)
    if start is None:
        raise InvalidInput("the data URI of an image does not begin with data:image/TYPE;base64,")
    if (len(source) - start.end()) * 3 // 4 > config.max_bytes + 3:
        raise _too_large(config)
    try:
        return base64.b64decode(source[start.end() :], validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"the data URI of an image is not base64: {error}") from None


def _allowed(source: str, config: ImageConfig) -> httpx.URL:
    try:
        url = httpx.URL(source)
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput("an image is neither a data URI nor a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("an image is neither a data URI nor an http or https URL")
    if url.userinfo:
        raise InvalidInput("the URL of an image contains a user name or password")
    host = url.host if url.port is None else f"{url.host}:{url.port}"
    if host not in config.hosts:
        raise InvalidInput(
            f"images are not fetched from {host[:200]!r}; service.reranking.images.hosts lists the allowed hosts"
        )
    return url


async def _fetch(url: httpx.URL, config: ImageConfig) -> bytes:
    client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=config.seconds)
    async with client, client.stream("GET", url) as response:
        if response.is_redirect:
            raise InvalidInput(f"{url.host} redirects the request for the image, and redirects are not followed")
        if response.status_code != 200:
            raise InvalidInput(f"{url.host} responded to the request for the image with status {response.status_code}")
        content = b""
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > config.max_bytes:
                raise _too_large(config)
        return content


def _too_large(config: ImageConfig) -> TooLarge:
    return TooLarge(f"an image is larger than {config.max_bytes} bytes (service.reranking.images.max_bytes)")
