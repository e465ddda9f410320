from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.preprocess import center_crop, preprocess, resize, to_input
from alexdeploy.recipe import TrainSettings
from alexdeploy.train.images import Augmentation, Pixels, principal_components

RGB = Contract(color="rgb", resize=20, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CONTRACTS = {
    "rgb": RGB,
    "bgr": Contract(color="bgr", crop=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    "gray": Contract(color="gray", crop=30, mean=(0.3,), std=(0.2,)),
}


def _dataset(*sizes: tuple[int, int], bad: tuple[int, ...] = (), skip_bad: bool = False) -> ImageDataset:
    """Noise pictures, (width, height) each."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]

    def read(index: int) -> Image.Image:
        if index in bad:
            raise OSError("broken")
        return Image.fromarray(pictures[index])

    names = [f"{i}.png" for i in range(len(sizes))]
    return ImageDataset("noise", ("a", "b"), names, np.arange(len(sizes)) % 2, read, skip_bad)


def _batch(
    dataset: ImageDataset, contract: Contract, augment: Any, seed: int = 0, pca: float = 0.0, rotate: float = 0.0
) -> Tensor:
    every = torch.arange(len(dataset))
    pixels = Pixels(dataset, contract, cropped=augment == "none")
    settings = TrainSettings(epochs=1, batch_size=1, learning_rate=1.0, augment=augment, fancy_pca=pca, rotate=rotate)
    return Augmentation(pixels, contract, settings).batch(every, every, len(dataset), seed)[0]


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
@pytest.mark.parametrize("free_memory", [True, False])
def test_without_augmentation_images_are_as_the_contract_says_to_the_bit(
    contract: Contract, free_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexdeploy.train.images._MEMORY_SHARE", 0.4 if free_memory else 0.0)
    dataset = _dataset((24, 20), (20, 33), (15, 18))
    expected = np.stack([preprocess(image, contract) for _, image in dataset.images()])
    assert np.array_equal(_batch(dataset, contract, "none").numpy(), expected)


def test_crop_mirror_takes_windows_of_the_resized_image_and_mirrors_half_of_them() -> None:
    dataset = _dataset((26, 21))
    image = resize(dataset.image(0), RGB)
    every = {
        to_input(side.crop((left, top, left + 16, top + 16)), RGB).tobytes(): mirrored
        for mirrored, side in ((False, image), (True, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
        for left in range(image.width - 15)
        for top in range(image.height - 15)
    }
    seen = [every[_batch(dataset, RGB, "crop-mirror", seed).numpy().tobytes()] for seed in range(60)]
    assert 15 < sum(seen) < 45


def test_an_image_smaller_than_the_crop_is_padded_as_for_evaluation() -> None:
    dataset = _dataset((10, 12))
    contract = CONTRACTS["bgr"]
    expected = to_input(center_crop(dataset.image(0), (16, 16)), contract)
    found = _batch(dataset, contract, "crop-mirror").numpy()[0]
    assert np.array_equal(found, expected) or np.array_equal(found[:, :, ::-1], expected)


def test_scale_mirror_gives_the_crop_size_within_the_range_of_the_image() -> None:
    flat = ImageDataset("flat", ("a", "b"), ["x"], np.array([0]), lambda i: Image.new("RGB", (40, 30), (80, 90, 100)))
    expected = to_input(Image.new("RGB", (16, 16), (80, 90, 100)), RGB)
    for seed in range(5):
        np.testing.assert_array_equal(_batch(flat, RGB, "scale-mirror", seed)[0], expected)
    noise = _dataset((40, 30))
    assert not torch.equal(_batch(noise, RGB, "scale-mirror", 0), _batch(noise, RGB, "scale-mirror", 1))


def test_principal_components_are_those_of_the_pixels() -> None:
    random = np.random.default_rng(0)
    pixels = (random.standard_normal((80, 80, 3)) * [30, 5, 12] + 128).clip(0, 255).astype(np.uint8)
    dataset = ImageDataset("one", ("a", "b"), ["x"], np.array([0]), lambda i: Image.fromarray(pixels))
    contract = Contract(color="rgb", crop=80, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = principal_components(Pixels(dataset, contract, cropped=True)).numpy()
    covariance = np.cov(pixels[::8, ::8].reshape(-1, 3).T.astype(float))
    np.testing.assert_allclose(found @ found.T, covariance, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(found, axis=0)), np.sqrt(np.linalg.eigvalsh(covariance)), rtol=1e-4
    )


def test_fancy_pca_adds_one_colour_to_each_image() -> None:
    dataset = _dataset((16, 16), (16, 16))
    contract = Contract(color="rgb", crop=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    added = _batch(dataset, contract, "none", pca=0.1) - _batch(dataset, contract, "none")
    per_image = added.flatten(2)
    torch.testing.assert_close(per_image, per_image[:, :, :1].expand_as(per_image), rtol=0, atol=1e-6)
    assert float(per_image.std()) > 0.005
    assert not torch.allclose(per_image[0], per_image[1])


def test_rotation_turns_about_the_centre_by_up_to_the_angle_and_fills_with_black() -> None:
    size, degrees = 65, 30.0
    bar = Image.new("L", (size, size))
    bar.paste(255, (32, 0, 33, size))  # a line through the centre, from top to bottom
    dataset = ImageDataset("bar", ("a", "b"), ["x"] * 60, np.zeros(60, np.int64), lambda i: bar)
    contract = Contract(color="gray", crop=size, mean=(0.0,), std=(1.0,))
    turned = _batch(dataset, contract, "none", rotate=degrees)[:, 0]
    assert torch.all(turned[:, 32, 32] > 0.9)
    # the line is at x = 32 + tan(angle) * 20, twenty rows above the centre
    columns = torch.arange(size, dtype=torch.float32)
    found = torch.rad2deg(torch.atan((32 - (turned[:, 12] * columns).sum(1) / turned[:, 12].sum(1)) / 20))
    assert float(found.abs().max()) <= degrees + 0.5
    assert np.allclose(np.quantile(found, [0.1, 0.5, 0.9]), [-24, 0, 24], atol=8)  # even over ±30
    white = ImageDataset("white", ("a", "b"), ["x"], np.array([0]), lambda i: Image.new("L", (size, size), 255))
    corners = _batch(white, contract, "none", seed=3, rotate=degrees)[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [0, 0, 0, 0]


def test_rotation_leaves_the_other_draws_alone() -> None:
    dataset = ImageDataset("flat", ("a", "b"), ["x"], np.array([0]), lambda i: _disc())
    for augment in ("crop-mirror", "scale-mirror"):
        still, turned = (_batch(dataset, RGB, augment, seed=5, pca=0.1, rotate=angle) for angle in (0.0, 1e-6))
        torch.testing.assert_close(turned, still, rtol=0, atol=0.05)


def _disc() -> Image.Image:
    """Something smooth, which bilinear resampling leaves as it is."""
    rows, columns = np.mgrid[:40, :50]
    return Image.fromarray(np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("free_memory", [True, False])
def test_bad_images_are_left_out_with_their_labels(free_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexdeploy.train.images._MEMORY_SHARE", 0.4 if free_memory else 0.0)
    dataset = _dataset((20, 20), (20, 20), (20, 20), (20, 20), bad=(1,), skip_bad=True)
    pixels = Pixels(dataset, RGB, cropped=True)
    assert pixels.labels.tolist() == [0, 0, 1]
    assert len(pixels) == 3
    assert dataset.skipped == ["1.png"]
    assert np.array_equal(torch.stack(list(pixels[torch.tensor([1])]))[0].numpy(), _pixels(dataset, 2))


def _pixels(dataset: ImageDataset, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(center_crop(resize(dataset.image(index), RGB), RGB.size))
