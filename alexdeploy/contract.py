"""The preprocessing contract: how an image becomes the network's input, as one frozen value with a fingerprint.

It is stored in the checkpoint, in the ONNX ``metadata_props`` (key ``alexdeploy.contract``) and in the engine's
sidecar, so that training, calibration, bench, predict and serving cannot preprocess differently. How it is applied
is in ``alexdeploy.data.preprocess``.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec

from alexdeploy.errors import InputError, UsageError

METADATA_KEY = "alexdeploy.contract"


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Image → float32 NCHW: decode as ``color``, resize the shorter side, centre crop, (x/255 - mean)/std.

    Attributes:
        color: channel order that the network sees; ``gray`` has one channel.
        resize: length in pixels of the shorter side after resizing, or None to keep the stored size.
        crop: height and width in pixels of the centre crop; a smaller image is padded with black.
        interpolation: Pillow filter used by ``resize`` (with antialiasing, as torchvision does on PIL images).
        mean, std: per channel, in units of x/255.
        labels: class names in output order; empty when the origin of the weights did not tell.
    """

    color: Literal["rgb", "bgr", "gray"]
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(f"mean and std need {self.channels} values each for color '{self.color}'")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UsageError("std must be > 0, and mean and std finite")
        if self.crop < 1 or (self.resize is not None and self.resize < 1):
            raise UsageError("crop and resize must be >= 1 pixel")

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one preprocessed image."""
        return (self.channels, self.crop, self.crop)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the canonical JSON of every field, labels included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return msgspec.json.encode(self, order="sorted").decode()

    @classmethod
    def from_json(cls, text: str | bytes, origin: str) -> Contract:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: not a contract; ``origin`` is the file named in the message.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{origin}: its preprocessing contract is not readable: {error}") from error
