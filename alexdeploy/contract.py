"""The preprocessing contract: how an image becomes the network's input, as one frozen value with a fingerprint.

It is stored in the checkpoint, in the ONNX ``metadata_props`` (key ``alexdeploy.contract``) and in the engine's
sidecar, so that training, calibration, bench, predict and serving cannot preprocess differently. How it is applied
is in ``alexdeploy.data.preprocess``; transforms of torchvision become one in ``alexdeploy.data.transforms``, files of
others in ``alexdeploy.preprocessor_config``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from alexdeploy import files
from alexdeploy.errors import InputError, UsageError

METADATA_KEY = "alexdeploy.contract"
_LARGEST = {"float32": 1e38, "float16": 65504.0}
_LONGEST_SIDE = 1 << 14  # in pixels; beyond it an input takes gigabytes

Size = int | tuple[int, int]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "area"]
Resampling = Literal["pillow", "torchvision", "torchvision-no-antialias", "opencv"]

INTERPOLATIONS: Mapping[Resampling, frozenset[Interpolation]] = {
    "pillow": frozenset({"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}),
    "torchvision": frozenset({"nearest", "bilinear", "bicubic"}),
    "torchvision-no-antialias": frozenset({"nearest", "bilinear", "bicubic"}),
    "opencv": frozenset({"nearest", "bilinear", "bicubic", "lanczos", "area"}),
}
# fields of the first version; the others are in the JSON only where they differ from the default, so that a contract
# of the same meaning keeps its fingerprint
_FIRST_VERSION = frozenset({"color", "crop", "interpolation", "labels", "mean", "resize", "std"})


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Image → network input: decode as ``color``, resize, centre crop, (x/scale - mean)/std.

    Attributes:
        color: channel order of the input; ``gray`` has one channel.
        resize: pixels of the shorter side after resizing; (height, width) resizes to just that; None keeps the size.
        letterbox: None squashes an image into (height, width). A value of 0…255 keeps its ratio instead and fills the
            border evenly with that.
        crop: pixels of the centre crop, a side or (height, width); a smaller image is padded with black. None where
            ``resize`` gives the size.
        interpolation: of ``resize``; ``INTERPOLATIONS`` has those of each library.
        resampling: whose arithmetic ``resize`` has. ``pillow`` (with antialiasing) is what torchvision does on Pillow
            images, ``torchvision`` what it does on uint8 tensors; ``opencv`` never antialiases, except for ``area``.
        exif_orientation: photographs are turned upright first, as their EXIF tag says.
        scale: pixels of 0…255 are divided by it: 255, or 1 for a mean in pixels.
        mean, std: per channel, in units of x/scale. None of them for a uint8 input.
        layout: order of the input's axes behind the batch.
        input_type: ``float32``, ``float16``, or ``uint8`` for a graph that takes the pixels as they are.
        labels: class names in output order; empty when the origin of the weights did not tell.

    Example:
        >>> from alexdeploy import Contract
        >>> Contract(color="gray", resize=(28, 28), mean=(0.1307,), std=(0.3081,)).input_shape
        (1, 28, 28)
    """

    color: Literal["rgb", "bgr", "gray"]
    crop: Size | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: Size | None = None
    interpolation: Interpolation = "bilinear"
    labels: tuple[str, ...] = ()
    letterbox: int | None = None
    resampling: Resampling = "pillow"
    exif_orientation: bool = False
    scale: float = 255.0
    layout: Literal["nchw", "nhwc"] = "nchw"
    input_type: Literal["float32", "float16", "uint8"] = "float32"

    def __post_init__(self) -> None:
        self._write_alike()
        self._check_geometry()
        self._check_arithmetic()

    def _write_alike(self) -> None:
        """One form for one meaning, and so one fingerprint."""
        for name in ("mean", "std"):
            msgspec.structs.force_setattr(self, name, tuple(map(float, getattr(self, name))))
        if isinstance(self.crop, tuple) and self.crop[0] == self.crop[1]:
            msgspec.structs.force_setattr(self, "crop", self.crop[0])
        if isinstance(self.resize, tuple) and _sides(self.crop) == self.resize:
            msgspec.structs.force_setattr(self, "crop", None)

    def _check_geometry(self) -> None:
        sides = [*_sides(self.crop), *_sides(self.resize)]
        if min(sides, default=1) < 1:
            raise UsageError("crop and resize must be >= 1 pixel")
        if max(sides, default=1) > _LONGEST_SIDE:
            raise UsageError(f"crop and resize must be <= {_LONGEST_SIDE} pixels")
        if self.letterbox is not None and not isinstance(self.resize, tuple):
            raise UsageError("letterbox fills up what resize = [height, width] names; give that")
        if self.crop is None and not isinstance(self.resize, tuple):
            raise UsageError("the size of the input is open; give crop, or resize as [height, width]")
        if self.letterbox is not None and not 0 <= self.letterbox <= 255:
            raise UsageError("letterbox must be a pixel value of 0 to 255")
        if self.interpolation not in INTERPOLATIONS[self.resampling]:
            valid = ", ".join(sorted(INTERPOLATIONS[self.resampling]))
            raise UsageError(f"{self.resampling} has no interpolation '{self.interpolation}'; it has {valid}")

    def _check_arithmetic(self) -> None:
        if self.input_type == "uint8":
            if self.mean or self.std or self.scale != 255:
                raise UsageError("a uint8 input takes pixels as they are; leave mean, std and scale out")
            return
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(f"mean and std need {self.channels} values each for color '{self.color}'")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UsageError("std must be > 0, and mean and std finite")
        if not 0 < self.scale < math.inf:
            raise UsageError("scale must be > 0 and finite")
        pairs = [*zip(self.mean, self.std, strict=True)]
        largest = max(self._input_of(pixel, *pair) for pixel in (0, 255) for pair in pairs)
        numbers = (self.scale, 1 / self.scale, *map(abs, self.mean), *self.std, 1 / min(self.std))
        if max(numbers) > _LARGEST["float32"] or largest > _LARGEST[self.input_type]:
            raise UsageError(
                f"scale, mean and std make inputs beyond the {_LARGEST[self.input_type]:g} of {self.input_type}"
            )

    def _input_of(self, pixel: int, mean: float, std: float) -> float:
        return abs(pixel / self.scale - mean) / std

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        height, width = _sides(self.crop) or _sides(self.resize)
        return height, width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed image: (C, H, W), or (H, W, C) where the layout says so."""
        return (self.channels, *self.size) if self.layout == "nchw" else (*self.size, self.channels)

    @property
    def of_pixels(self) -> Contract:
        """For the same network with the arithmetic inside its graph: uint8 (H, W, C), in RGB where it had BGR."""
        return msgspec.structs.replace(
            self,
            color="gray" if self.color == "gray" else "rgb",
            mean=(),
            std=(),
            scale=255.0,
            layout="nhwc",
            input_type="uint8",
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the canonical JSON of every field, labels included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differs_from(self, other: Contract) -> str | None:
        """What keeps two files from being versions of one network, in words; None where nothing does.

        A uint8 graph has its arithmetic and its layout inside, so those of the other are not compared with it.
        """
        if self.labels != other.labels:
            return "class names"
        inside = {"mean", "std", "scale", "color", "layout", "input_type"}
        free = {"layout", "input_type"}
        if "uint8" in (self.input_type, other.input_type) and self.channels == other.channels:
            free = inside
        ours, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return next((name for name in ours if name not in free and ours[name] != theirs[name]), None)

    def to_json(self) -> str:
        defaults = {field.name: field.default for field in msgspec.structs.fields(self)}
        written = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name in _FIRST_VERSION or value != defaults[name]
        }
        return msgspec.json.encode(written, order="sorted").decode()

    @classmethod
    def from_json(cls, text: str | bytes, origin: str) -> Contract:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: not a contract; ``origin`` is the file named in the message.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except files.UNDECODABLE as error:
            raise InputError(f"{origin}: its preprocessing contract is not readable: {str(error)[:300]}") from error


def _sides(size: Size | None) -> tuple[int, ...]:
    if size is None:
        return ()
    return (size, size) if isinstance(size, int) else size
