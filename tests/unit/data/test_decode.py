"""Decoding at reduced size, held against Pillow's full decoding and a resize of its own."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from alexdeploy.contract import Contract
from alexdeploy.data.decode import decode_reduced
from alexdeploy.data.preprocess import resize


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
