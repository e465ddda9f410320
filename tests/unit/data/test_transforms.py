"""Contracts from transforms, judged by the transforms themselves on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode, v2

from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import preprocess
from alexdeploy.data.transforms import contract_from_transforms
from alexdeploy.errors import UsageError
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BICUBIC, NEAREST_EXACT = InterpolationMode.BICUBIC, InterpolationMode.NEAREST_EXACT
NORMAL = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
FLOATS = v2.ToDtype(torch.float32, scale=True)

EQUAL: dict[str, Callable[[], Any]] = {
    "the classic": lambda: transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56), *NORMAL]),
    "v2": lambda: v2.Compose([v2.RGB(), v2.Resize(64), v2.CenterCrop((50, 60)), v2.ToImage(), FLOATS]),
    "nested": lambda: transforms.Compose([nn.Sequential(v2.Resize([40, 50]), v2.Identity()), v2.Compose(NORMAL)]),
    "a crop alone": lambda: transforms.Compose([transforms.CenterCrop(120), transforms.ToTensor()]),
    "bicubic, exact": lambda: transforms.Compose([transforms.Resize((60, 50), BICUBIC), transforms.ToTensor()]),
    "nearest-exact": lambda: v2.Compose([v2.Resize((60, 50), NEAREST_EXACT), transforms.ToTensor()]),
    "lanczos": lambda: v2.Compose([v2.Resize([64], InterpolationMode.LANCZOS), v2.CenterCrop(64), v2.PILToTensor()]),
    "grey": lambda: v2.Compose(
        [v2.Grayscale(), v2.Resize(28), v2.CenterCrop(28), transforms.ToTensor(), v2.Normalize([0.1307], [0.3081])]
    ),
    "mean in pixels": lambda: v2.Compose(
        [v2.CenterCrop(50), v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize([104.0, 117.0, 123.0], [1.0] * 3)]
    ),
    "a function": lambda: transforms.Compose(
        [transforms.functional.pil_to_tensor, v2.Resize((40, 50)), v2.ConvertImageDtype(), v2.ToPureTensor()]
    ),
    "tensors": lambda: v2.Compose([v2.ToImage(), v2.Resize(64, BICUBIC), v2.CenterCrop(60), FLOATS]),
    "tensors, no antialias": lambda: v2.Compose([v2.ToImage(), v2.Resize((40, 50), antialias=False), FLOATS]),
    "antialias None": lambda: v2.Compose([v2.ToImage(), v2.Resize((40, 50), antialias=None), FLOATS]),
    "pixels": lambda: v2.Compose([v2.Resize((40, 50)), v2.PILToTensor()]),
    "a preset": lambda: models.AlexNet_Weights.IMAGENET1K_V1.transforms(),
    "a preset, bicubic": lambda: models.EfficientNet_B0_Weights.IMAGENET1K_V1.transforms(),
}
NEARLY: dict[str, Callable[[], Any]] = {
    "floats": lambda: transforms.Compose([transforms.ToTensor(), transforms.Resize((40, 50))]),
    "floats, no antialias": lambda: v2.Compose(
        [v2.ToImage(), FLOATS, v2.Resize(64, antialias=False), v2.CenterCrop(60)]
    ),
    "the first torchvision": lambda: transforms.Compose(
        [transforms.PILToTensor(), transforms.Resize((40, 50)), transforms.ConvertImageDtype(torch.float32)]
    ),
}


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _check(given: Any, image: Image.Image, *, levels: float = 0.0) -> None:
    contract = contract_from_transforms(given)
    found, expected = preprocess(image, contract), given(image).numpy()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    # a level is 1/scale before mean and std; the 1e-5 is float32's rounding
    unit = 1.0 if contract.input_type == "uint8" else 1 / contract.scale / min(contract.std)
    np.testing.assert_allclose(found.astype(float), expected, rtol=0, atol=levels * unit + 1e-5)


@pytest.mark.parametrize("make", EQUAL.values(), ids=EQUAL)
@pytest.mark.parametrize("size", [(96, 71), (67, 118)], ids=["landscape", "portrait"])
def test_the_contract_makes_the_same_input(make: Callable[[], Any], size: tuple[int, int]) -> None:
    _check(make(), _noise(*size))


@pytest.mark.parametrize("make", NEARLY.values(), ids=NEARLY)
def test_where_torchvision_rounds_elsewhere_it_is_within_one_level(make: Callable[[], Any]) -> None:
    _check(make(), _noise(96, 71), levels=1.01)


@needs_shared_data
def test_on_photographs() -> None:
    paths = sorted((SHARED_DATA / "flowers").rglob("*.jpg"))
    for path in (paths[0], paths[-1]):
        image = Image.open(path).convert("RGB")
        for make in EQUAL.values():
            _check(make(), image)
        for make in NEARLY.values():
            _check(make(), image, levels=1.01)


def test_tensors_come_in_where_no_transform_makes_one() -> None:
    given = v2.Compose([v2.Resize((40, 50)), FLOATS, v2.Normalize(MEAN, STD)])
    image = _noise(96, 71)
    contract = contract_from_transforms(given, ["a", "b"])
    assert (contract.resampling, contract.labels) == ("torchvision", ("a", "b"))
    expected = given(v2.functional.pil_to_tensor(image)).numpy()
    np.testing.assert_allclose(preprocess(image, contract), expected, rtol=0, atol=1e-5)


def test_the_classic_is_the_contract_of_a_recipe() -> None:
    written = Contract(color="rgb", resize=256, crop=224, mean=tuple(MEAN), std=tuple(STD))
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    for normalize in (transforms.Normalize(MEAN, STD), v2.Normalize(torch.tensor(MEAN), torch.tensor(STD))):
        assert contract_from_transforms(transforms.Compose([*steps, normalize])).fingerprint == written.fingerprint


class Resize:
    """Somebody's own, of the same name."""


TO, CROP = transforms.ToTensor(), transforms.CenterCrop(8)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([transforms.RandomResizedCrop(224), TO], "RandomResizedCrop: that is for training; give the transforms of"),
        ([v2.RandomHorizontalFlip(), CROP, TO], "RandomHorizontalFlip: that is for training"),
        ([v2.ColorJitter(0.1), CROP, TO], "ColorJitter: that is for training"),
        ([transforms.Lambda(lambda image: image), CROP, TO], "Lambda: what its code does cannot be read"),
        ([lambda image: image, CROP, TO], r"tests\.\S+<lambda>: what its code does cannot be read"),
        ([Resize(), CROP, TO], r"tests\.unit\.data\.test_transforms\.Resize: a contract cannot express it"),
        ([transforms.Pad(3), CROP, TO], "Pad: a contract cannot express it; it knows Resize"),
        ([transforms.TenCrop(3), TO], "TenCrop: a contract cannot express it"),
        ([v2.Resize(9, max_size=12), CROP, TO], "Resize: max_size cannot be expressed"),
        ([CROP, v2.Resize(9), TO], "Resize: an image is resized once, before CenterCrop"),
        ([v2.Resize(9), v2.Resize(8), CROP, TO], "Resize: an image is resized once"),
        ([TO, transforms.Resize(9, BICUBIC), CROP], "Resize: bicubic overshoots on floats"),
        ([transforms.PILToTensor(), transforms.Resize(9, BICUBIC), CROP], "Resize: bicubic .* v2 alone"),
        ([TO, v2.Resize(9, NEAREST_EXACT), CROP], "Resize: nearest-exact on a tensor cannot be expressed"),
        ([CROP, CROP, TO], "CenterCrop: an image is cropped once"),
        ([TO, v2.Normalize(MEAN, STD), CROP], "CenterCrop: an image is cropped once, before Normalize"),
        ([CROP, v2.Grayscale(3), TO], "Grayscale: grey images with three channels"),
        ([v2.Resize(9), v2.Grayscale(), CROP, TO], "Grayscale: .* put it before Resize and ToTensor"),
        (
            [CROP, TO, v2.Normalize([0.5], [0.5])],
            r"Normalize: it has 1 means .* for rgb images; put Grayscale\(\) first",
        ),
        ([CROP, v2.PILToTensor(), v2.Normalize(MEAN, STD)], "Normalize: it needs floats, once"),
        ([CROP, TO, v2.Normalize(MEAN, STD), v2.Normalize(MEAN, STD)], "Normalize: it needs floats, once"),
        ([CROP, FLOATS, TO], "ToDtype: the image is not a tensor yet"),
        ([CROP, TO, v2.ToDtype(torch.float16)], "ToDtype: float16 cannot be expressed"),
        ([CROP, TO, TO], "ToTensor: the image is a tensor already"),
        ([v2.Resize(9), TO], "leave the size open; give CenterCrop, or Resize with"),
        ([CROP, TO, v2.ToPILImage()], "ToPILImage: a contract cannot express it"),
    ],
)
def test_what_a_contract_cannot_express_is_refused_by_name(steps: list[Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        contract_from_transforms(transforms.Compose(steps))
    assert "\n" not in str(refused.value)
