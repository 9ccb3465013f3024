"""Untrusted images, opened within limits. Whatever is wrong with one raises InvalidInput."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from chamfer.core.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def open_image(image: Path | bytes, max_side: int) -> Image:
    """The image in RGB, shrunk so that neither side exceeds `max_side` pixels; the first frame of an animation.

    Raises InvalidInput for an image of another format than FORMATS, a truncated one, or one above MAX_PIXELS.
    """
    from PIL import Image, UnidentifiedImageError

    source = image if isinstance(image, Path) else io.BytesIO(image)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InvalidInput(
                    f"an image has {opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are accepted"
                )
            rgb = opened.convert("RGB")
    except UnidentifiedImageError:
        raise InvalidInput(f"an image is in none of the formats {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"an image cannot be read: {error}") from error
    rgb.thumbnail((max_side, max_side))
    return rgb
