"""Targets that are images: bytes of clients, and files of users through a data set and a contract."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexdeploy.contract import Contract
from alexdeploy.data.decode import MOST_PIXELS, UNREADABLE, image_from_bytes, open_image
from alexdeploy.data.preprocess import preprocess, ten_crop
from alexdeploy.data.sources import load_dataset
from tests.fuzz.mutate import png_chunk
from tests.fuzz.target import Target

_CONTRACTS = (
    Contract(color="rgb", resize=16, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3, exif_orientation=True),
    Contract(color="gray", resize=(8, 8), letterbox=7, mean=(0.5,), std=(0.5,)),
)
_TOKENS = (b"\xff\xd8", b"\xff\xda", b"\xff\xc2", b"\xff\xdd", b"Exif\0\0", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fdAT")


def _image(mode: str, size: tuple[int, int] = (19, 13)) -> Image.Image:
    ramp = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3) * 7 % 256
    image = Image.fromarray(ramp.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((ramp[..., 0] * 257).astype(np.uint16))
    return image.convert(mode)


def _encoded(kind: str, mode: str, **options: Any) -> bytes:
    if options.pop("rotated", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    _image(mode).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def _jpegs() -> Sequence[bytes]:
    options: tuple[dict[str, Any], ...] = ({}, {"progressive": True}, {"rotated": True}, {"restart_marker_blocks": 1})
    return [_encoded("JPEG", mode, **more) for mode in ("RGB", "L", "CMYK") for more in options]


def _pngs() -> Sequence[bytes]:
    return [_encoded("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1", "I;16")] + [
        _encoded("PNG", "RGB", rotated=True),
        _encoded("PNG", "RGB", save_all=True, append_images=[_image("RGB")]),
    ]


def _others() -> Sequence[bytes]:
    """WebP, BMP, GIF and TIFF, which clients may send as well."""
    frames = {"save_all": True, "append_images": [_image("RGB", (7, 5))]}
    tiffs = [
        _encoded("TIFF", mode, compression=compression)
        for mode in ("RGB", "L", "CMYK", "1")
        for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "group4", "jpeg")
        if (compression == "group4") == (mode == "1")
    ]
    webps = [
        _encoded("WEBP", "RGB"),
        _encoded("WEBP", "RGBA", lossless=True),
        _encoded("WEBP", "RGB", save_all=True, append_images=[_image("RGB")]),
    ]
    gifs = [_encoded("GIF", "P"), _encoded("GIF", "RGB", **frames)]
    return [*webps, _encoded("BMP", "RGB"), _encoded("BMP", "P"), *gifs, *tiffs, _encoded("TIFF", "I;16")]


def _rare() -> Sequence[bytes]:
    """Formats that only files of users are read in, whatever their ending."""
    kinds = ("AVIF", "DDS", "ICO", "JPEG2000", "MPO", "PCX", "PPM", "QOI", "SGI", "SPIDER", "TGA", "BLP")
    modes = {"SPIDER": "F", "BLP": "P"}
    return [_encoded(kind, modes.get(kind, "RGB")) for kind in kinds] + [_encoded("PPM", "I;16"), _encoded("XBM", "1")]


def _check_bytes(path: Path) -> None:
    image = image_from_bytes(path.read_bytes(), max_pixels=MOST_PIXELS // 2)  # about 10 bytes each, under way
    for contract in _CONTRACTS:
        preprocess(image, contract)


def _check_file(path: Path) -> None:
    """As ``predict`` and ``calibrate`` do; a user's own image may be as large as Pillow takes."""
    dataset = load_dataset(str(path), "all")
    with contextlib.suppress(*UNREADABLE), open_image(path) as image:
        if image.width * image.height > MOST_PIXELS:
            return
    for contract in _CONTRACTS:
        list(dataset.inputs(contract))
    list(dataset.inputs(_CONTRACTS[0], reduced=True))
    ten_crop(dataset.image(0), _CONTRACTS[0])


TARGETS = (
    Target("jpeg", _jpegs, _check_bytes, "image.jpg", tokens=_TOKENS),
    Target("png", _pngs, _check_bytes, "image.png", (png_chunk,), _TOKENS),
    Target("webp_gif_tiff", _others, _check_bytes, "image.bin"),
    Target("image_file", lambda: [*_jpegs()[:4], *_pngs()], _check_file, "image.jpg", (png_chunk,), _TOKENS),
    Target("image_rare", _rare, _check_file, "image.jpg"),
)
