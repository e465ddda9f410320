from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _contract(color: Any = "rgb", **options: Any) -> Contract:
    channels = 1 if color == "gray" else 3
    return Contract(color=color, mean=MEAN[:channels], std=STD[:channels], **options)


def _noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _by_torchvision(image: Image.Image, contract: Contract) -> npt.NDArray[np.float32]:
    steps: list[Any] = [v2.Grayscale() if contract.color == "gray" else v2.RGB()]
    if contract.resize:
        steps.append(v2.Resize(contract.resize, InterpolationMode(contract.interpolation), antialias=True))
    steps += [v2.CenterCrop(contract.crop), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    result: npt.NDArray[np.float32] = v2.Compose([*steps, v2.Normalize(contract.mean, contract.std)])(image).numpy()
    return result


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(("resize", "crop"), [(None, 64), (64, 57), (57, 57), (33, 48)])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((96, 72), id="landscape"),
        pytest.param((72, 96), id="portrait"),
        pytest.param((101, 64), id="odd-landscape"),
        pytest.param((67, 118), id="odd-portrait"),
        pytest.param((80, 80), id="square"),
        pytest.param((21, 40), id="small"),
        pytest.param((150, 11), id="flat"),
    ],
)
def test_preprocessing_is_torchvisions(size: tuple[int, int], resize: int | None, crop: int, color: str) -> None:
    image, contract = _noise(size), _contract(color, resize=resize, crop=crop)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_every_interpolation_is_torchvisions(interpolation: str) -> None:
    image, contract = _noise((101, 67)), _contract(resize=31, crop=28, interpolation=interpolation)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_an_image_stored_in_another_mode_is_converted(mode: str, color: str) -> None:
    image, contract = _noise((40, 30), mode), _contract(color, resize=24, crop=20)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


def test_bgr_is_rgb_with_the_channels_reversed() -> None:
    image = _noise((40, 30))
    rgb = preprocess(image, Contract(color="rgb", resize=24, crop=20, mean=MEAN, std=STD))
    bgr = preprocess(image, Contract(color="bgr", resize=24, crop=20, mean=MEAN[::-1], std=STD[::-1]))
    np.testing.assert_array_equal(bgr, rgb[::-1])


def test_a_small_image_lies_in_the_middle_of_black() -> None:
    white = Image.new("L", (2, 1), 255)
    result = preprocess(white, Contract(color="gray", crop=4, mean=(0.0,), std=(1.0,)))
    assert result.tolist() == [[[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]


def test_the_result_is_contiguous_float32_of_the_contracts_shape() -> None:
    contract = _contract("bgr", crop=20)
    result = preprocess(_noise((40, 30)), contract)
    assert (result.dtype.name, result.shape) == ("float32", contract.input_shape)
    assert result.flags.c_contiguous


def test_the_image_is_left_as_it_was() -> None:
    image = _noise((40, 30))
    before = image.tobytes()
    preprocess(image, _contract("bgr", resize=24, crop=20))
    assert (image.mode, image.size, image.tobytes()) == ("RGB", (40, 30), before)
