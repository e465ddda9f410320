"""Preprocessing contracts from the transforms of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, Literal, NoReturn

from alexdeploy.contract import Contract, Size
from alexdeploy.errors import UsageError
from alexdeploy.optional import require

_TO_BYTES = frozenset({"PILToTensor", "ToImage", "pil_to_tensor", "to_image"})
_TO_FLOATS = frozenset({"ToTensor", "to_tensor", "timm.data.transforms.MaybeToTensor"})
_NO_CHANGE = frozenset({"Identity", "ToPureTensor"})
_FOR_TRAINING = frozenset(
    {
        *("AugMix", "AutoAugment", "ColorJitter", "CutMix", "ElasticTransform", "GaussianBlur", "GaussianNoise"),
        *("MixUp", "RandAugment", "ScaleJitter", "TrivialAugmentWide"),
    }
)


def contract_from_transforms(transforms: Any, labels: Sequence[str] = ()) -> Contract:
    """The contract that preprocesses an image as these transforms of evaluation do.

    Pixels are equal, or differ by one of 255 levels where torchvision resizes tensors of floats or with
    ``torchvision.transforms`` instead of ``v2``. Images are taken as RGB where no ``Grayscale`` says otherwise.
    Transforms that make no tensor themselves take uint8 tensors, as ``torchvision.io.decode_image`` gives them.

    Args:
        transforms: a transform of ``torchvision.transforms`` or of its ``v2``, a ``Compose`` of such, or what
            ``weights.transforms()`` gives.
        labels: class names in output order.

    Raises:
        UsageError: a transform that a contract cannot express, or an order of them; the transform is named.
        UnavailableError: torchvision is not installed.

    Example:
        >>> from torchvision.transforms import v2
        >>> from alexdeploy import contract_from_transforms
        >>> contract = contract_from_transforms(v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()]))
        >>> contract.resize, contract.crop, contract.input_type
        (256, 224, 'uint8')
    """
    steps = [(_name(step), step) for step in _flat(transforms)]
    makes_tensor = any(name in _TO_BYTES | _TO_FLOATS for name, _ in steps)
    reading = _Reading("image" if makes_tensor else "bytes")
    for name, step in steps:
        reading.take(name, step)
    return reading.contract(tuple(labels))


def _flat(transform: Any) -> Iterator[Any]:
    """The single transforms, in order."""
    name = _name(transform)
    if name in ("Compose", "Sequential"):
        for step in transform.transforms if name == "Compose" else transform:
            yield from _flat(step)
    elif name == "ImageClassification":  # what weights.transforms() gives
        v2 = require("torchvision.transforms.v2")
        yield v2.Resize(transform.resize_size, transform.interpolation, antialias=transform.antialias)
        yield v2.CenterCrop(transform.crop_size)
        yield from (v2.PILToTensor(), v2.ConvertImageDtype(), v2.Normalize(transform.mean, transform.std))
    else:
        yield transform


def _name(transform: Any) -> str:
    """``Resize`` where torchvision made it, with its module in front where somebody else did."""
    kind = transform if isinstance(transform, FunctionType) else type(transform)
    module: str = kind.__module__
    return kind.__name__ if module.partition(".")[0] in ("torch", "torchvision") else f"{module}.{kind.__name__}"


class _Reading:
    """The fields of the contract that the transforms so far amount to, and what they have made of the image."""

    def __init__(self, stage: Literal["image", "bytes"]) -> None:
        self._stage: Literal["image", "bytes", "floats", "normal"] = stage
        self._color: Literal["rgb", "gray"] = "rgb"
        self._resize: Size | None = None
        self._crop: Size | None = None
        self._how: dict[str, Any] = {}
        self._scale = 255.0
        self._mean: tuple[float, ...] = ()
        self._std: tuple[float, ...] = ()

    def take(self, name: str, step: Any) -> None:
        if name in _NO_CHANGE:
            return
        if name.startswith("Random") or name in _FOR_TRAINING:
            _refuse(name, "that is for training; give the transforms of evaluation")
        if name == "Lambda" or (isinstance(step, FunctionType) and name not in _TO_BYTES | _TO_FLOATS):
            _refuse(name, "what its code does cannot be read; use a transform of torchvision, or write the contract")
        if name in ("RGB", "Grayscale"):
            self._take_color(name, step)
        elif name == "Resize":
            self._take_resize(step)
        elif name == "CenterCrop":
            self._take_crop(step)
        elif name in _TO_BYTES | _TO_FLOATS:
            if self._stage != "image":
                _refuse(name, "the image is a tensor already; take it out")
            self._stage = "bytes" if name in _TO_BYTES else "floats"
        elif name in ("ToDtype", "ConvertImageDtype"):
            self._take_dtype(name, step)
        elif name == "Normalize":
            self._take_normalize(step)
        else:
            known = "Resize, CenterCrop, Grayscale, ToTensor, ToDtype and Normalize"
            _refuse(name, f"a contract cannot express it; it knows {known}")

    def _take_color(self, name: str, step: Any) -> None:
        if name == "RGB":
            if self._color == "gray":
                _refuse(name, "grey images with three channels cannot be expressed; leave Grayscale or this out")
            return
        if step.num_output_channels != 1:
            _refuse(name, "grey images with three channels cannot be expressed; use num_output_channels=1")
        if self._stage != "image" or self._resize is not None:
            _refuse(name, "the colours are changed first, on Pillow's image; put it before Resize and ToTensor")
        self._color = "gray"

    def _take_resize(self, step: Any) -> None:
        if self._resize is not None or self._crop is not None or self._stage == "normal":
            _refuse("Resize", "an image is resized once, before CenterCrop and Normalize")
        if step.max_size is not None:
            _refuse("Resize", "max_size cannot be expressed; use a size of (height, width), or CenterCrop")
        mode = str(getattr(step.interpolation, "value", step.interpolation))
        if self._stage == "image":
            self._how = {"interpolation": "nearest" if mode == "nearest-exact" else mode}
        elif mode not in ("nearest", "bilinear", "bicubic"):
            _refuse("Resize", f"{mode} on a tensor cannot be expressed; put Resize before ToTensor")
        elif mode == "bicubic" and (self._stage == "floats" or ".v2" not in type(step).__module__):
            _refuse("Resize", "bicubic overshoots on floats, and v2 alone has another way; use v2.Resize on uint8")
        else:
            kind = "torchvision" if step.antialias else "torchvision-no-antialias"
            self._how = {"interpolation": mode, "resampling": kind}
        self._resize = _size(step.size)

    def _take_crop(self, step: Any) -> None:
        if self._crop is not None or self._stage == "normal":
            _refuse("CenterCrop", "an image is cropped once, before Normalize")
        self._crop = _size(step.size)

    def _take_dtype(self, name: str, step: Any) -> None:
        if self._stage == "image":
            _refuse(name, "the image is not a tensor yet; put ToImage before it")
        dtype = str(step.dtype).removeprefix("torch.")
        if dtype == ("uint8" if self._stage == "bytes" else "float32"):
            return
        if dtype != "float32":
            _refuse(name, f"{dtype} cannot be expressed; use torch.float32")
        self._stage = "floats"
        self._scale = 255.0 if getattr(step, "scale", True) else 1.0

    def _take_normalize(self, step: Any) -> None:
        if self._stage != "floats":
            _refuse(
                "Normalize", "it needs floats, once; put ToTensor, or ToDtype(torch.float32, scale=True), before it"
            )
        mean, std = _floats(step.mean), _floats(step.std)
        channels = 1 if self._color == "gray" else 3
        if not len(mean) == len(std) == channels:
            advice = "put Grayscale() first for grey images" if len(mean) == 1 else f"give {channels} of each"
            _refuse("Normalize", f"it has {len(mean)} means and {len(std)} stds for {self._color} images; {advice}")
        self._mean, self._std, self._stage = mean, std, "normal"

    def contract(self, labels: tuple[str, ...]) -> Contract:
        if self._stage == "image":
            raise UsageError("the transforms leave a Pillow image; end them with ToTensor or PILToTensor")
        if self._crop is None and not isinstance(self._resize, tuple):
            raise UsageError("the transforms leave the size open; give CenterCrop, or Resize with (height, width)")
        fields: dict[str, Any] = {"color": self._color, "resize": self._resize, "crop": self._crop, "labels": labels}
        if self._stage == "bytes":
            return Contract(**fields, **self._how, input_type="uint8")
        channels = 1 if self._color == "gray" else 3
        mean, std = self._mean or (0.0,) * channels, self._std or (1.0,) * channels
        return Contract(**fields, **self._how, scale=self._scale, mean=mean, std=std)


def _size(size: Any) -> Size:
    """A side, or (height, width)."""
    if isinstance(size, int):
        return size
    return int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))


def _floats(values: Any) -> tuple[float, ...]:
    """Numbers, or float32 tensors, which become as short as they can be written."""
    each = values if hasattr(values, "__len__") else [values]
    return tuple(float(str(value.numpy()) if hasattr(value, "numpy") else value) for value in each)


def _refuse(name: str, why: str) -> NoReturn:
    raise UsageError(f"transform {name}: {why}")
