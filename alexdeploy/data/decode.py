"""Opening images with Pillow: files of the user, and bytes from clients that nobody trusts."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import struct
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UnavailableError, is_lack

# what Pillow raises on files that are not, or not wholly, images, or where something lacks (``raise_if_lacking``)
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, RuntimeError, MemoryError, struct.error),
    Image.DecompressionBombError,
)
_HEIF = frozenset({".heic", ".heif"})
_AVERAGING = frozenset({"pillow", "torchvision"})  # resamplings that see every pixel of the image they shrink
# what clients send. Pillow reads more: its EPS reader starts Ghostscript, others are old and little tried
_FROM_CLIENTS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 50_000_000  # of what is decoded, and of an image resized by its shorter side, or padded
_MOST_SCANS = 100  # of a JPEG, as libtiff has it: each costs a pass over all pixels, and 75 bytes are one
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SCAN, _END = 0xDA, 0xD9
_STILL = 2  # times the size that is wanted, at least, after reduced decoding


def open_image(path: Path, *, found: bool = False) -> Image.Image:
    """The image in a file, whose pixels are read when they are used.

    Args:
        path: of the file; where it is not ``found``, it may be a pipe.
        found: in a folder or a list; what a user names is not.

    Raises:
        OSError: the file cannot be read or holds no image, or pillow-heif is not installed and it needs that.
    """
    if found and not path.is_file() and path.exists() and not path.is_dir():
        raise OSError("it is a pipe, a socket or a device, and no file")  # reading it might wait for ever
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if path.suffix.lower() not in _HEIF:
            raise
        _register_heif()
        return Image.open(path)


def raise_if_lacking(error: Exception, name: str) -> None:
    """Raise an error again that is the machine's and not the image's (``errors.is_lack``).

    Args:
        error: of opening or decoding.
        name: of the image.

    Raises:
        OSError: no descriptors, or a failing disk.
        UnavailableError: no memory; of a damaged file it may be that which asks for too much.
    """
    if isinstance(error, MemoryError):
        raise UnavailableError(f"no memory to read image '{name}'; free some, or see whether it is damaged") from error
    if is_lack(error):
        if isinstance(error, OSError) and error.filename is None:
            error.filename = name
        raise error


def why_unreadable(error: Exception) -> str:
    """What kept an image from being read, on one line, without the path that a message names anyhow."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow can read"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def has_frames(image: Image.Image) -> bool:
    """True if it is animated or has pages, of which ``open_image`` gives the first.

    A photograph with a smaller one behind it, as telephones write them (MPO), counts as one image.
    """
    with contextlib.suppress(Exception):  # damage behind the first frame, which is fine
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


def image_from_bytes(content: bytes, *, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """The image that a client sent, decoded; of several frames the first.

    Args:
        content: an encoded image: JPEG, PNG, WebP, BMP, GIF or TIFF.
        max_pixels: more are refused before they are decoded; a small file can unpack to a huge image.

    Raises:
        InputError: no image of these formats, one that is damaged, or too much work. The line holds nothing of the
            content, so that a log may keep it.
        UnavailableError: this machine has no memory for it.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FROM_CLIENTS)
        if not (found := _too_much(image, content, max_pixels)):
            image.load()
            return image
    except UnidentifiedImageError:
        raise InputError(f"{len(content)} bytes are no image; expected {', '.join(_FROM_CLIENTS)}") from None
    except Image.DecompressionBombError:  # Pillow's own bound, where ours is wider
        found = f"too many pixels; at most {Image.MAX_IMAGE_PIXELS} are taken"
    except MemoryError:
        raise UnavailableError(f"no memory for an image of {len(content)} bytes; lower `max_pixels`") from None
    except Exception:  # decoders raise anything, and quote the file
        raise InputError("the image is damaged or cut off, or of a rare kind; store it as PNG or JPEG again") from None
    raise InputError(f"the image has {found}; make it smaller")


def _too_much(image: Image.Image, content: bytes, max_pixels: int) -> str:
    """What would take too much memory or time to decode, in words; empty where nothing does."""
    if image.width * image.height > max_pixels:
        return f"{image.width} x {image.height} pixels; at most {max_pixels} are taken"
    if isinstance(image, JpegImageFile) and (scans := _scans(content)) > _MOST_SCANS:
        return f"{scans} scans; at most {_MOST_SCANS} are taken"
    if isinstance(image, TiffImageFile):  # a tile may be far larger than the image
        width, height = (int(image.tag_v2.get(tag, 1)) for tag in (TILEWIDTH, TILELENGTH))
        if width * height > max_pixels:
            return f"tiles of {width} x {height} pixels; at most {max_pixels} are taken"
    return ""


def _scans(content: bytes) -> int:
    """Scans of a JPEG, as libjpeg meets them: not those of a thumbnail in it, nor of what follows its end."""
    scans, place = 0, 2
    while (marker := _MARKER.search(content, place)) and (kind := marker[1][0]) != _END:
        place = marker.end()
        scans += kind == _SCAN
        if kind >= 0xC0 and not 0xD0 <= kind <= 0xD7:  # others stand alone
            place += int.from_bytes(content[place : place + 2], "big")
    return scans


def decode_reduced(image: Image.Image, contract: Contract) -> None:
    """Have a JPEG that is not yet read decoded at 1/2, 1/4 or 1/8 of its size, where the contract shrinks it far more.

    Its shorter side stays at least twice the longest one that the contract resizes to, its sides are divided without a
    rest (else the resized image is shifted by part of a pixel), and the resize averages over all pixels. Any other
    image is left as it is.

    Pixels after the resize, measured against full decoding at qualities 90 and 95: photographs of 3000 x 2000 and
    4000 x 3000 enlarged from smaller ones differ by 0.3 levels of 255 on average and 4 at most, sharp small ones
    (388 x 256 to 64) by 1.0 and 11, pure noise by 1.9 and 12. For calibration alone: everything that judges a
    model decodes in full.

    Args:
        image: as ``open_image`` gives it; its ``size`` becomes that of the reduced image.
        contract: whose ``resize`` comes next.
    """
    if not isinstance(image, JpegImageFile) or contract.resize is None:
        return
    if contract.resampling in _AVERAGING and contract.interpolation != "nearest":
        side = contract.resize if isinstance(contract.resize, int) else max(contract.resize)
        width, height = image.size
        for part in (8, 4, 2):
            if min(width, height) >= _STILL * part * side and width % part == height % part == 0:
                image.draft(None, (width // part, height // part))
                return


@cache
def _register_heif() -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError as error:
        raise OSError("to read HEIC files: pip install pillow-heif") from error
