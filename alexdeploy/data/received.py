"""Images that somebody else sent: few formats, a bound on their pixels, and messages without what is in them."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, UnidentifiedImageError

from alexdeploy.data.dataset import UNREADABLE
from alexdeploy.errors import InputError

MOST_PIXELS = 50_000_000  # a small file can unpack to a huge image
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")  # not EPS: it starts Ghostscript


def received_image(content: bytes) -> Image.Image:
    """The image in an encoded file, with its pixels; of several the first.

    Raises:
        InputError: none of the formats, more than ``MOST_PIXELS``, or damaged.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
        if image.width * image.height > MOST_PIXELS:
            raise InputError(f"the image has {image.width} x {image.height} pixels; at most {MOST_PIXELS} are taken")
        image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{len(content)} bytes are no image; expected {', '.join(_formats())}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"the image has too many pixels; at most {MOST_PIXELS} are taken") from error
    except (*UNREADABLE, MemoryError) as error:
        raise InputError("the image is damaged or cut off; send it again") from error
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those that Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
