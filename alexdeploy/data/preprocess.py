"""Applying the preprocessing contract. Training evaluation, calibration, bench and predict all come through here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from alexdeploy.contract import Contract
from alexdeploy.data.decode import MOST_PIXELS
from alexdeploy.errors import InputError
from alexdeploy.optional import require

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})  # formats whose 32-bit mode of Pillow holds 16-bit values


def preprocess(image: Image.Image, contract: Contract) -> npt.NDArray[Any]:
    """One decoded image → the contract's ``input_shape`` and ``input_type``.

    Raises:
        InputError: pixels whose range is not known (32-bit integers and floats), or colours that are not RGB or gray;
            damaged EXIF data, where the contract turns by them; an image so narrow that it would become huge when its
            shorter side is resized or padded.
        UnavailableError: the library that the contract's resampling names is not installed.
    """
    return to_input(center_crop(resize(image, contract), contract.size), contract)


def ten_crop(image: Image.Image, contract: Contract) -> npt.NDArray[Any]:
    """One decoded image → (10, *input_shape): its four corners and centre, then their mirror images.

    The class probabilities of the ten are averaged (Krizhevsky et al. 2012, §4.1). An image of the crop's own size
    gives five times the same crop.
    """
    height, width = contract.size
    image = _padded(resize(image, contract), contract.size)
    right, bottom = image.width - width, image.height - height
    corners = [image.crop((x, y, x + width, y + height)) for y in (0, bottom) for x in (0, right)]
    crops = [*corners, center_crop(image, contract.size)]
    return np.stack([to_input(crop, contract) for crop in (*crops, *map(ImageOps.mirror, crops))])


def resize(image: Image.Image, contract: Contract) -> Image.Image:
    """Turned upright where the contract says so, in its colours (RGB for bgr), and resized; not yet cropped."""
    if contract.exif_orientation:
        image = _upright(image)
    image = _eight_bits(image)
    try:
        image = image.convert("L" if contract.color == "gray" else "RGB")
    except ValueError as error:
        raise InputError(f"its colours ({image.mode}) cannot be converted; store it as RGB") from error
    if contract.resize is None:
        return image
    if isinstance(contract.resize, int):
        return _resampled(image, _shorter_side(image, contract.resize), contract)
    height, width = contract.resize
    if contract.letterbox is None:
        return _resampled(image, (width, height), contract)
    ratio = min(height / image.height, width / image.width)
    inner = (max(round(image.width * ratio), 1), max(round(image.height * ratio), 1))
    return _padded(_resampled(image, inner, contract), contract.resize, contract.letterbox)


def _upright(image: Image.Image) -> Image.Image:
    """As ``ImageOps.exif_transpose``, which also writes the other tags anew, and fails on odd ones."""
    image.load()
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # its reader raises anything, and quotes the file
        raise InputError("its EXIF data are damaged, so which side is up is not known; store it anew") from None
    return image if method is None else image.transpose(method)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit pixels as 8-bit ones; Pillow's own conversion would clip them to white."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in _SIXTEEN_BITS):
        values = np.asarray(image).astype(np.int32)
        values += 128  # in place: a large image takes hundreds of megabytes
        values //= 257
        return Image.fromarray(values.astype(np.uint8))
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floats"
        raise InputError(f"its pixels are {kind}, whose range is not known; store it with 8 or 16 bits")
    return image


def _shorter_side(image: Image.Image, side: int) -> tuple[int, int]:
    """(width, height) with a shorter side of that; the longer one is rounded down, as torchvision's ``Resize`` does."""
    width, height = image.size
    long = int(side * max(width, height) / min(width, height))
    size = (side, long) if width <= height else (long, side)
    _check_not_huge(image, size)
    return size


def _check_not_huge(image: Image.Image, size: tuple[int, int]) -> None:
    """Refuse a needle: 108 bytes of PNG may hold one of 1 x 60000, and 256 x 15360000 pixels take gigabytes."""
    if size[0] * size[1] > max(MOST_PIXELS, 16 * min(size) ** 2):
        raise InputError(
            f"{image.width} x {image.height} pixels become {size[0]} x {size[1]} when resized or padded; crop the image"
        )


def _resampled(image: Image.Image, size: tuple[int, int], contract: Contract) -> Image.Image:
    """The image at (width, height), by the arithmetic of the contract's library."""
    name = contract.interpolation
    if image.size == size:
        return image
    if contract.resampling == "pillow":
        return image.resize(size, Image.Resampling[name.upper()])
    if contract.resampling == "opencv":
        cv2 = require("cv2")
        flag = {"bilinear": "LINEAR", "bicubic": "CUBIC", "lanczos": "LANCZOS4"}.get(name, name.upper())
        return Image.fromarray(cv2.resize(np.asarray(image), size, interpolation=getattr(cv2, f"INTER_{flag}")))
    torch, functional = require("torch"), require("torchvision.transforms.v2.functional")
    planes = torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)
    mode = require("torchvision.transforms").InterpolationMode(name)
    resized = functional.resize(planes, [*size[::-1]], mode, antialias=contract.resampling == "torchvision")
    pixels = resized.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The central (height, width) pixels; an image smaller than that is first padded with black, evenly."""
    height, width = size
    image = _padded(image, size)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _padded(image: Image.Image, size: tuple[int, int], value: int = 0) -> Image.Image:
    """At least (height, width) in size, by an even border; the odd pixel is at the right and the bottom."""
    pad_x, pad_y = max(size[1] - image.width, 0), max(size[0] - image.height, 0)
    if not pad_x and not pad_y:
        return image
    _check_not_huge(image, (image.width + pad_x, image.height + pad_y))
    fill = value if image.mode == "L" else (value,) * 3
    return ImageOps.expand(image, (pad_x // 2, pad_y // 2, (pad_x + 1) // 2, (pad_y + 1) // 2), fill)


def to_input(image: Image.Image, contract: Contract) -> npt.NDArray[Any]:
    """(x/scale - mean)/std in the contract's channel order, layout and type; uint8 pixels as they are."""
    return from_pixels(np.asarray(image).reshape(image.height, image.width, contract.channels), contract)


def from_pixels(pixels: npt.NDArray[np.uint8], contract: Contract) -> npt.NDArray[Any]:
    """The same of pixels (..., H, W, C), RGB or gray: what a graph with a uint8 input does itself."""
    if contract.color == "bgr":
        pixels = pixels[..., ::-1]
    per_channel: tuple[int, ...] = (-1,)
    if contract.layout == "nchw":
        pixels, per_channel = np.moveaxis(pixels, -1, -3), (-1, 1, 1)
    if contract.input_type == "uint8":
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32, order="C")  # in place from here: a third of the time
    values /= np.float32(contract.scale)
    values -= np.asarray(contract.mean, dtype=np.float32).reshape(per_channel)
    values /= np.asarray(contract.std, dtype=np.float32).reshape(per_channel)
    return values.astype(contract.input_type, copy=False)
