"""Decoding at reduced size, held against Pillow's full decoding and a resize of its own; bytes from clients."""

from __future__ import annotations

import os
import socket
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from alexdeploy.contract import Contract
from alexdeploy.data.decode import decode_reduced, image_from_bytes, open_image
from alexdeploy.data.preprocess import resize
from alexdeploy.errors import InputError


def _contract(**options: Any) -> Contract:
    given: dict[str, Any] = {"resize": 256, "crop": 224} | options
    return Contract(color="rgb", mean=(0.0,) * 3, std=(1.0,) * 3, **given)


def _stored(image: Image.Image, kind: str = "JPEG") -> Image.Image:
    """As a file of that kind, opened and not yet read."""
    file = BytesIO()
    image.save(file, kind, quality=90)
    return Image.open(BytesIO(file.getvalue()))


def _plain(size: tuple[int, int], kind: str = "JPEG") -> Image.Image:
    return _stored(Image.new("RGB", size), kind)


@pytest.mark.parametrize("photograph", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_a_photograph_of_4000_by_3000_keeps_its_pixels(photograph: str, interpolation: Any) -> None:
    large = Image.fromarray(load_sample_image(photograph)).resize((4000, 3000), Image.Resampling.BICUBIC)
    image, whole = _stored(large), _stored(large)
    full = whole.resize((341, 256), Image.Resampling[interpolation.upper()])
    decode_reduced(image, _contract(interpolation=interpolation))
    assert image.size == (1000, 750)
    off = np.abs(np.asarray(resize(image, _contract(interpolation=interpolation)), np.int16) - np.asarray(full))
    assert off.mean() < 0.4
    assert off.max() <= 6


def test_of_noise_too_only_details_finer_than_the_resize_are_lost() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1504, 2000, 3), dtype=np.uint8))
    full = _stored(noise).resize((340, 256), Image.Resampling.BILINEAR)
    image = _stored(noise)
    decode_reduced(image, _contract())
    assert image.size == (1000, 752)
    off = np.abs(np.asarray(resize(image, _contract()), np.int16) - np.asarray(full))
    assert off.mean() < 2
    assert off.max() <= 16


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4096, 4096), (512, 512)),
        ((4088, 4088), (1022, 1022)),
        ((2000, 1024), (1000, 512)),
        ((2000, 1022), (2000, 1022)),
        ((2001, 1024), (2001, 1024)),
    ],
)
def test_the_shorter_side_stays_twice_the_target_and_no_pixel_is_cut(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = _plain(size)
    decode_reduced(image, _contract())
    image.load()
    assert image.size == expected


@pytest.mark.parametrize(
    "options",
    [
        {"resize": None},
        {"resize": (256, 600), "crop": None},
        {"interpolation": "nearest"},
        {"resampling": "opencv"},
        {"resampling": "torchvision-no-antialias"},
    ],
)
def test_without_a_resize_that_averages_an_image_is_read_in_full(options: dict[str, Any]) -> None:
    image = _plain((1200, 1040))
    decode_reduced(image, _contract(**options))
    assert image.size == (1200, 1040)


def test_a_png_is_read_in_full() -> None:
    image = _plain((1200, 1040), "PNG")
    decode_reduced(image, _contract())
    assert image.size == (1200, 1040)


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_bytes_of_a_client_are_the_image(kind: str) -> None:
    content = _bytes(_noise(), kind)
    image = image_from_bytes(content)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(Image.open(BytesIO(content)).convert("RGB")))


def test_the_exif_orientation_stays() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert image_from_bytes(_bytes(_noise(), "JPEG", exif=exif)).getexif()[274] == 6


def _tiff_with_a_tile_of(side: int) -> bytes:
    """16 x 16 gray pixels in one deflated tile."""
    packed = zlib.compress(bytes(side * side))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def _jpeg_with_scans(count: int) -> bytes:
    """A progressive JPEG of 6 scans whose last one is repeated."""
    content = _bytes(Image.new("L", (64, 64), 77), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + content[-2:]


def test_a_tile_and_a_hundred_scans_are_read() -> None:
    assert image_from_bytes(_tiff_with_a_tile_of(1024)).getextrema() == (0, 0)
    assert image_from_bytes(_jpeg_with_scans(100)).getextrema() == (77, 77)


def test_scans_are_counted_to_the_end_of_the_image_and_outside_other_segments() -> None:
    scan = b"\xff\xda" * 101
    content = _jpeg_with_scans(100)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(scan)) + scan
    film = b"\0\0\0\x18ftypmp42" + scan  # as phones append to a photo
    image_from_bytes(content[:2] + thumbnail + content[2:] + film)
    content = _jpeg_with_scans(101)
    last = content.rindex(b"\xff\xda")
    with pytest.raises(InputError, match="101 scans"):  # no such segment, so what would be its length hides nothing
        image_from_bytes(content[:last] + b"\xff\x02\xff\xff" + content[last:])


def test_a_long_run_of_fill_bytes_is_read_once() -> None:
    content = _jpeg_with_scans(6)
    image_from_bytes(content[:-2] + b"\xff" * 2_000_000 + b"\0" + content[-2:])  # takes hours if done by squares


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^0 bytes are no image; expected JPEG, PNG, WEBP, BMP, GIF, TIFF$"),
        (b"SECRET, no image at all", "^23 bytes are no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image"),  # Ghostscript would run
        (_bytes(Image.new("RGB", (8, 8)), "DDS"), "no image"),
        (_bytes(_noise(), "PNG")[:-900], "damaged"),
        (_bytes(_noise(), "JPEG")[:-900], "damaged"),
        (_bytes(_noise(), "PNG").replace(b"IDAT", b"KEY!"), "no image"),
        (_bytes(Image.new("1", (10_000, 10_000)), "PNG"), "^the image has 10000 x 10000 pixels; at most 50000000 "),
        (_bytes(Image.new("1", (20_000, 20_000)), "PNG"), "too many pixels"),
        (_tiff_with_a_tile_of(7200), "tiles of 7200 x 7200"),
        (_jpeg_with_scans(101), "101 scans; at most 100"),
    ],
    ids=["empty", "text", "EPS", "DDS", "cut PNG", "cut JPEG", "odd chunk", "large", "vast", "tile", "scans"],
)
def test_no_image_or_too_much_of_one_is_refused_in_a_line_without_its_content(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        image_from_bytes(content)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 120
    assert "SECRET" not in text
    assert "KEY!" not in text


def test_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="60 x 40 pixels; at most 2399"):
        image_from_bytes(_PNG, max_pixels=2399)


_PNG = _bytes(_noise(), "PNG")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_of_a_damaged_file_nothing_but_an_image_or_our_error_comes(kind: str) -> None:
    random = np.random.default_rng(1)
    content = np.frombuffer(_bytes(_noise(), kind), np.uint8)
    refused = 0
    for _ in range(150):
        damaged = content.copy()
        places = random.integers(0, min(len(content), 300), 4)
        damaged[places] = random.integers(0, 256, 4, dtype=np.uint8)
        try:
            image_from_bytes(damaged.tobytes())
        except InputError:
            refused += 1
    assert 0 < refused < 150


def test_a_pipe_a_socket_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket.png"))  # the whole path may be too long for one
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    with server:
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(OSError, match="it is a pipe, a socket or a device, and no file"):
                open_image(path, found=True)
    for name, kind in (("gone.png", FileNotFoundError), (".", IsADirectoryError)):
        with pytest.raises(kind):
            open_image(tmp_path / name)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_palette_with_transparency_is_its_colours_without_a_warning(
    color: Any, transparency: Any, tmp_path: Path
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).quantize(16)
    palette = np.asarray(noise.getpalette(), np.uint8).reshape(-1, 3)
    noise.save(tmp_path / "p.png", **({} if transparency is None else {"transparency": transparency}))
    expected = Image.fromarray(palette[np.asarray(noise)]).convert("L" if color == "gray" else "RGB")
    contract = Contract(color=color, crop=24, input_type="uint8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resize(open_image(tmp_path / "p.png"), contract)
    assert found.tobytes() == expected.tobytes()
