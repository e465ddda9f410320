"""Opening image files with Pillow."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from alexdeploy.contract import Contract

_HEIF = frozenset({".heic", ".heif"})
_AVERAGING = frozenset({"pillow", "torchvision"})  # resamplings that see every pixel of the image they shrink
_STILL = 2  # times the size that is wanted, at least, after reduced decoding


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
