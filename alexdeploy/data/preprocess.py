"""Applying the preprocessing contract. Training evaluation, calibration, bench and predict all come through here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from alexdeploy.contract import Contract

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def preprocess(image: Image.Image, contract: Contract) -> npt.NDArray[np.float32]:
    """One decoded image → float32 (C, H, W) as the contract says."""
    return normalize(center_crop(resize(image, contract), contract.crop), contract)


def ten_crop(image: Image.Image, contract: Contract) -> npt.NDArray[np.float32]:
    """One decoded image → (10, C, H, W): its four corners and centre, then their mirror images.

    The class probabilities of the ten are averaged (Krizhevsky et al. 2012, §4.1). An image of the crop's own size
    gives five times the same crop.
    """
    image, size = _padded(resize(image, contract), contract.crop), contract.crop
    right, bottom = image.width - size, image.height - size
    corners = [image.crop((x, y, x + size, y + size)) for y in (0, bottom) for x in (0, right)]
    crops = [*corners, center_crop(image, size)]
    return np.stack([normalize(crop, contract) for crop in (*crops, *map(ImageOps.mirror, crops))])


def resize(image: Image.Image, contract: Contract) -> Image.Image:
    """Convert to the contract's colours and bring the shorter side to ``contract.resize``; the longer side follows.

    The longer side is rounded down, as torchvision's ``Resize`` does.
    """
    image = image.convert("L" if contract.color == "gray" else "RGB")
    if contract.resize is None:
        return image
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short == contract.resize:
        return image
    new_long = int(contract.resize * long / short)
    size = (contract.resize, new_long) if width <= height else (new_long, contract.resize)
    return image.resize(size, _FILTERS[contract.interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central size×size pixels; an image smaller than that is first padded with black, evenly."""
    image = _padded(image, size)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _padded(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width >= size and height >= size:
        return image
    pad_x, pad_y = max(size - width, 0), max(size - height, 0)
    return ImageOps.expand(image, (pad_x // 2, pad_y // 2, (pad_x + 1) // 2, (pad_y + 1) // 2))


def normalize(image: Image.Image, contract: Contract) -> npt.NDArray[np.float32]:
    """(x/255 - mean)/std in the contract's channel order, HWC → float32 CHW."""
    pixels = np.asarray(image).reshape(image.height, image.width, contract.channels)
    if contract.color == "bgr":
        pixels = pixels[:, :, ::-1]
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")  # in place from here: a third of the time
    planes /= np.float32(255)
    planes -= np.asarray(contract.mean, dtype=np.float32)[:, None, None]
    planes /= np.asarray(contract.std, dtype=np.float32)[:, None, None]
    return planes
