"""Opening image files with Pillow."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_HEIF = frozenset({".heic", ".heif"})


def open_image(path: Path) -> Image.Image:
    """The image in a file, whose pixels are read when they are used.

    Raises:
        OSError: the file cannot be read or holds no image, or pillow-heif is not installed and it needs that.
    """
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if path.suffix.lower() not in _HEIF:
            raise
        _register_heif()
        return Image.open(path)


@cache
def _register_heif() -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError as error:
        raise OSError("to read HEIC files: pip install pillow-heif") from error
