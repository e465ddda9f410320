"""Small encoded images of many kinds, made with Pillow alone."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(
    seed: int, mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (23, 17), turned: int = 1
) -> bytes:
    """Noise around a colour of its own; ``turned`` is its EXIF orientation."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, 3) + random.normal(0, 60, (size[1], size[0], 3))
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    image.save(file, kind, exif=exif) if turned > 1 else image.save(file, kind)
    return file.getvalue()


def every_kind() -> list[bytes]:
    """Of every mode and format that photographs and drawings have."""
    pngs = [encoded(seed, mode) for seed, mode in enumerate(("RGB", "L", "RGBA", "P", "1", "LA"))]
    others = [encoded(seed, kind=kind) for seed, kind in enumerate(("JPEG", "WEBP", "BMP", "GIF", "TIFF"), 10)]
    turned = [encoded(seed, kind="JPEG", turned=seed - 18) for seed in range(20, 27)]
    sizes = [encoded(seed, size=size) for seed, size in enumerate(((8, 8), (1, 1), (300, 10), (9, 400)), 30)]
    return [*pngs, *others, *turned, *sizes, encoded(40, "CMYK", "JPEG"), *map(encoded, range(50, 70))]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises that many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
