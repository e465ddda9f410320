"""Preprocessing contracts from the files of others: Transformers' preprocessor_config.json, timm's config.json.

Rules and defaults are those of Transformers 4.5x (``image_processing_*.py``) and timm 1.0
(``data/transforms_factory.py``, ``transforms_imagenet_eval``).
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

from alexdeploy import files
from alexdeploy.contract import Contract, Interpolation, Size
from alexdeploy.errors import InputError, UsageError, few

_Decoded = TypeVar("_Decoded", bound=msgspec.Struct)

_PILLOW: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by number


class _Processor(NamedTuple):
    """Whether a bare number as ``size`` is an exact size (else the shorter side), and whether it crops by default."""

    exact: bool
    crops: bool | None  # None: it has no centre crop


_PROCESSORS = {
    "Beit": _Processor(exact=True, crops=True),
    "Bit": _Processor(exact=False, crops=True),
    "CLIP": _Processor(exact=False, crops=True),
    "ConvNext": _Processor(exact=False, crops=None),
    "DeiT": _Processor(exact=True, crops=True),
    "EfficientFormer": _Processor(exact=True, crops=True),
    "EfficientNet": _Processor(exact=True, crops=False),
    "Levit": _Processor(exact=False, crops=True),
    "MobileNetV1": _Processor(exact=False, crops=True),
    "MobileNetV2": _Processor(exact=False, crops=True),
    "MobileViT": _Processor(exact=False, crops=True),
    "PoolFormer": _Processor(exact=False, crops=True),
    "Pvt": _Processor(exact=True, crops=None),
    "Segformer": _Processor(exact=True, crops=None),
    "Siglip": _Processor(exact=True, crops=None),
    "ViT": _Processor(exact=True, crops=None),
}
_BESIDE = frozenset(  # keys that change no pixel of an RGB image
    {
        *("_processor_class", "_valid_processor_keys", "device", "disable_grouping", "do_convert_rgb"),
        *("do_reduce_labels", "feature_extractor_type", "image_processor_type", "input_data_format"),
        *("model_input_names", "processor_class", "reduce_labels", "return_tensors", "transformers_version"),
    }
)
_LEAST_SHARE = 0.01  # of an image that is cropped
_Edges = int | dict[str, int | None]


class _Transformers(msgspec.Struct, frozen=True):
    size: _Edges | None = None
    crop_size: _Edges | None = None
    crop_pct: float | None = None
    default_to_square: bool | None = None
    resample: int | None = None
    rescale_factor: float | None = None
    rescale_offset: bool | None = None
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None
    include_top: bool | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_flip_channel_order: bool | None = None
    data_format: str | None = None


class _Timm(msgspec.Struct, frozen=True):
    """The keys of ``pretrained_cfg`` that say how images are preprocessed for evaluation, with timm's defaults."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def parse_preprocessor_config(text: str, origin: str) -> Contract:
    """The contract, without labels, that such a JSON file describes; ``origin`` is the file named in a message.

    A processor named ``…Fast`` resizes as torchvision does, another as Pillow does. The crop is torchvision's: where
    an odd number of pixels is left over, older versions of Transformers cropped a pixel beside it.

    Raises:
        InputError: neither kind of file, a value of the wrong kind, or a key that a contract cannot express (named).
    """
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
    except files.UNDECODABLE as error:
        raise InputError(f"{origin}: not a JSON file with preprocessing: {error}") from error
    try:
        timm = content.get("pretrained_cfg", content if "input_size" in content else None)
        if isinstance(timm, dict):
            return _from_timm(_converted(timm, _Timm))
        kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
        if kind or "image_mean" in content:
            return _from_transformers(content, kind)
        raise UsageError(
            f"expected preprocessor_config.json of Transformers or config.json of timm; it has the keys {few(content)}"
        )
    except UsageError as error:
        raise InputError(f"{origin}: {error}") from error


def _converted(content: Any, kind: type[_Decoded]) -> _Decoded:
    known = {field.name for field in msgspec.structs.fields(kind)}
    given = {key: value for key, value in content.items() if key in known and value is not None}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from error


def _from_timm(config: _Timm) -> Contract:
    channels, height, width = config.input_size
    if channels not in (1, 3):
        _refuse("input_size", f"expected 1 or 3 channels; found {channels}")
    if not _LEAST_SHARE <= config.crop_pct <= 1:
        _refuse("crop_pct", f"expected {_LEAST_SHARE} to 1; found {config.crop_pct:g}")
    if config.interpolation not in _PILLOW:
        _refuse("interpolation", f"'{config.interpolation}' is none of {', '.join(_PILLOW)}")
    scaled = math.floor(height / config.crop_pct), math.floor(width / config.crop_pct)
    resize: Size = scaled
    if config.crop_mode == "center":
        if height != width:
            _refuse("crop_mode", "'center' for an input that is not square cannot be expressed; 'squash' can")
        resize = scaled[0]
    elif config.crop_mode != "squash":
        _refuse("crop_mode", f"'{config.crop_mode}' cannot be expressed; 'center' and 'squash' can")
    return Contract(
        color="gray" if channels == 1 else "rgb",
        resize=resize,
        crop=(height, width),
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
    )


def _from_transformers(content: dict[str, Any], kind: str) -> Contract:
    match = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast)?", kind)
    name = match[1] if match else ""
    if match is None or name not in _PROCESSORS:
        which = f"'{kind}' is not known" if kind else "it is missing"
        _refuse("image_processor_type", f"{which}; known are {', '.join(_PROCESSORS)}, each with ImageProcessor behind")
    known = {field.name for field in msgspec.structs.fields(_Transformers)}
    odd = [key for key, value in content.items() if key not in known | _BESIDE and value not in (None, False)]
    if odd:
        _refuse(odd[0], "this key is not known, and may change the images; write a TOML file with [preprocess]")
    config = _converted(content, _Transformers)
    if config.data_format not in (None, "channels_first"):
        _refuse("data_format", f"'{config.data_format}' is not known; channels_first is")
    resize, crop = _geometry(config, name)
    scale, mean, std = _arithmetic(config, name)
    flips = name == "MobileViT" and config.do_flip_channel_order is not False
    fields: dict[str, Any] = {"resize": resize, "crop": crop, "scale": scale, "mean": mean, "std": std}
    if resize is not None:
        fields["interpolation"] = _interpolation(config.resample, is_fast=bool(match[3]))
        fields["resampling"] = "torchvision" if match[3] else "pillow"
    return Contract(color="bgr" if flips else "gray" if len(mean) == 1 else "rgb", **fields)


def _interpolation(number: int | None, *, is_fast: bool) -> Interpolation:
    if number is None or not 0 <= number < len(_PILLOW):
        _refuse("resample", f"expected Pillow's number of a filter, 0 to {len(_PILLOW) - 1}; found {number}")
    name = _PILLOW[number]
    if is_fast and name not in ("bilinear", "bicubic"):
        _refuse("resample", f"{number} ({name}) differs between versions of Fast processors; 2 and 3 are known")
    return name


def _geometry(config: _Transformers, name: str) -> tuple[Size | None, Size | None]:
    """(resize, crop) as the processor understands its keys."""
    processor = _PROCESSORS[name]
    if config.do_center_crop and processor.crops is None:
        _refuse("do_center_crop", f"{name} processors have no centre crop; set it to false")
    exact = processor.exact if config.default_to_square is None else config.default_to_square
    resizes = config.do_resize is not False
    size = _edges("size", config.size, exact=exact) if resizes or config.size is not None else None
    resize = size if resizes else None
    crops = processor.crops if config.do_center_crop is None else config.do_center_crop
    crop = None
    if crops:  # old files leave the size of the crop out where it is that of the image
        crop = _edges("crop_size", size if config.crop_size is None else config.crop_size, exact=True)
    if name in ("ConvNext", "Levit", "PoolFormer") and resize is not None:
        return _enlarged(config, name, resize, crop)
    if crop is None and not isinstance(resize, tuple):
        _refuse("size", "a shorter side leaves the size open; give height and width, or do_center_crop")
    return resize, crop


def _enlarged(config: _Transformers, name: str, resize: Size, crop: Size | None) -> tuple[Size, Size | None]:
    """(resize, crop) of the processors that resize to more than the size that they name."""
    if not isinstance(resize, int):
        _refuse("size", f"{name} processors take shortest_edge")
    if name == "Levit":
        return int(256 / 224 * resize), crop
    share = 224 / 256 if config.crop_pct is None and name == "ConvNext" else config.crop_pct
    if share is None or not _LEAST_SHARE <= share <= 1:
        _refuse("crop_pct", f"expected {_LEAST_SHARE} to 1; found {share}")
    if name == "PoolFormer":
        return int(resize / share), crop
    return ((resize, resize), None) if resize >= 384 else (int(resize / share), resize)


def _edges(key: str, value: _Edges | tuple[int, int] | None, *, exact: bool) -> Size:
    """A shorter side, or (height, width)."""
    if isinstance(value, int):
        return (value, value) if exact else value
    if isinstance(value, tuple):
        return value
    found = {edge: pixels for edge, pixels in (value or {}).items() if pixels is not None}
    if found.keys() == {"height", "width"}:
        return found["height"], found["width"]
    if found.keys() != {"shortest_edge"}:
        _refuse(key, f"expected a number, height and width, or shortest_edge; found {', '.join(found) or 'nothing'}")
    side = found["shortest_edge"]
    return (side, side) if key == "crop_size" else side


def _arithmetic(config: _Transformers, name: str) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(scale, mean, std)."""
    scale = 1.0
    if config.do_rescale is not False:
        factor = 1 / 255 if config.rescale_factor is None else config.rescale_factor
        if not 0 < factor <= 1:
            _refuse("rescale_factor", f"expected more than 0 and at most 1; found {factor:g}")
        scale = round(1 / factor, 3)  # 0.003921569 is 1/255
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if config.do_normalize is not False and name != "MobileViT":
        mean, std = _each("image_mean", config.image_mean), _each("image_std", config.image_std)
    if config.rescale_offset and config.do_rescale is not False:
        if scale != 127.5:  # at another factor the versions of Transformers differ
            _refuse("rescale_offset", f"it is known with rescale_factor 1/127.5; found 1/{scale:g}")
        mean = tuple(value + 1 for value in mean)
    if name == "EfficientNet" and config.include_top is not False:  # divided by image_std a second time
        by = _each("image_std", config.image_std)
        std = tuple(first * second for first, second in zip(std, by, strict=True))
    return scale, mean, std


def _each(key: str, value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        _refuse(key, "it is missing; add it")
    return value if isinstance(value, tuple) else (value,) * 3


def _refuse(key: str, why: str) -> NoReturn:
    raise UsageError(f"{key}: {why}")
