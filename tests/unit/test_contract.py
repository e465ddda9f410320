from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UsageError

RGB = Contract(
    color="rgb", resize=256, crop=227, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), labels=("Löwenzahn", "b")
)
DEFAULTS = {"letterbox", "resampling", "exif_orientation", "scale", "layout", "input_type"}


def test_a_contract_survives_its_json() -> None:
    assert Contract.from_json(RGB.to_json(), "model.onnx") == RGB


def test_the_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    contract = msgspec.structs.replace(RGB, letterbox=114, crop=None, resize=(1, 2))
    written = {name: value for name, value in msgspec.to_builtins(contract).items() if name not in DEFAULTS}
    canonical = json.dumps({**written, "letterbox": 114}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert contract.fingerprint == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_contract_of_the_first_version_keeps_its_fingerprint() -> None:
    """As release 0.5 wrote it, before there were more fields."""
    text = (
        '{"color":"rgb","crop":227,"interpolation":"bilinear","labels":["Löwenzahn","b"],"mean":[0.485,0.456,0.406],'
        '"resize":256,"std":[0.229,0.224,0.225]}'
    )
    assert Contract.from_json(text, "model.onnx") == RGB
    assert RGB.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert msgspec.structs.replace(RGB, crop=(227, 227)).fingerprint == RGB.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"color": "bgr"},
        {"resize": None},
        {"crop": 224},
        {"interpolation": "bicubic"},
        {"mean": (0.485, 0.456, 0.407)},
        {"std": (0.229, 0.224, 0.226)},
        {"labels": ("b", "Löwenzahn")},
        {"crop": (224, 227)},
        {"resize": (256, 256)},
        {"resize": (256, 256), "letterbox": 0},
        {"resampling": "opencv"},
        {"exif_orientation": True},
        {"scale": 1.0},
        {"layout": "nhwc"},
        {"input_type": "float16"},
    ],
)
def test_every_field_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert msgspec.structs.replace(RGB, **change).fingerprint != RGB.fingerprint


@pytest.mark.parametrize(("color", "channels"), [("rgb", 3), ("bgr", 3), ("gray", 1)])
def test_the_input_shape_is_channels_and_crop(color: Any, channels: int) -> None:
    contract = Contract(color=color, crop=28, mean=(0.0,) * channels, std=(1.0,) * channels)
    assert contract.input_shape == (channels, 28, 28)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"color": "cmyk"}, "cmyk"),
        ({"mean": [0.5]}, "mean and std need 3 values each"),
        ({"std": [1, 1, 1, 1]}, "mean and std need 3 values each"),
        ({"color": "gray"}, "mean and std need 1 values each"),
        ({"std": [1, 0, 1]}, "std must be > 0"),
        ({"crop": 0}, ">= 1 pixel"),
        ({"resize": 0}, ">= 1 pixel"),
        ({"crop": "227"}, "crop"),
        ({"sharpen": True}, "sharpen"),
        ({"crop": None}, "the size of the input is open"),
        ({"letterbox": 114}, "letterbox fills up what resize"),
        ({"resize": [8, 8], "letterbox": 256}, "pixel value"),
        ({"crop": [8, 0]}, ">= 1 pixel"),
        ({"interpolation": "area"}, "pillow has no interpolation 'area'; it has bicubic, bilinear, box"),
        ({"input_type": "uint8"}, "leave mean, std and scale out"),
        ({"scale": 0}, "scale must be > 0"),
    ],
)
def test_json_that_is_no_contract_is_refused_with_its_origin(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=f"^model.onnx: .*{complaint}"):
        Contract.from_json(json.dumps({**msgspec.to_builtins(RGB), **change}), "model.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", b'{"color":"\xff"}'])
def test_text_that_is_no_json_of_a_contract_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"^model.onnx: its preprocessing contract is not readable"):
        Contract.from_json(text, "model.onnx")


def test_a_standard_deviation_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match="std must be > 0"):
        Contract(color="gray", crop=28, mean=(0.0,), std=(float("nan"),))


def test_the_input_shape_follows_layout_and_size() -> None:
    wide = Contract(color="rgb", resize=(32, 64), letterbox=114, input_type="uint8", layout="nhwc")
    assert wide.input_shape == (32, 64, 3)
    assert msgspec.structs.replace(wide, layout="nchw", crop=(16, 8)).input_shape == (3, 16, 8)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, None),
        ({"layout": "nhwc"}, None),
        ({"input_type": "float16"}, None),
        ({"input_type": "uint8", "mean": (), "std": (), "color": "bgr"}, None),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"crop": 224}, "crop"),
        ({"input_type": "uint8", "mean": (), "std": (), "crop": 224}, "crop"),
        ({"labels": ("a", "b")}, "class names"),
    ],
)
def test_versions_of_one_network_differ_in_how_the_input_is_handed_over_alone(
    change: dict[str, Any], difference: str | None
) -> None:
    assert msgspec.structs.replace(RGB, **change).differs_from(RGB) == difference


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"resize": (224, 224), "crop": 224}, {"resize": (224, 224), "crop": None}),
        ({"crop": (224, 224)}, {"crop": 224}),
        ({"mean": (0, 0, 0)}, {"mean": (0.0, 0.0, 0.0)}),
    ],
)
def test_what_means_the_same_has_one_fingerprint(change: dict[str, Any], same: dict[str, Any]) -> None:
    one, other = msgspec.structs.replace(RGB, **change), msgspec.structs.replace(RGB, **same)
    assert (one, one.fingerprint) == (other, other.fingerprint)


@pytest.mark.parametrize("size", [{"crop": 16385}, {"crop": 8, "resize": 2**63}, {"resize": (20000, 8)}])
def test_a_size_of_gigabytes_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="crop and resize must be <= 16384 pixels"):
        Contract(color="gray", mean=(0.5,), std=(0.5,), **size)


@pytest.mark.parametrize(
    "arithmetic",
    [
        {"mean": (1e308,), "std": (1.0,)},
        {"mean": (0.0,), "std": (1e-320,)},
        {"mean": (0.0,), "std": (1e300,)},
        {"mean": (0.0,), "std": (1e-30,), "scale": 1e-30},
        {"mean": (0.0,), "std": (1.0,), "scale": 1e-320},
        {"mean": (0.0,), "std": (0.001,), "scale": 1.0, "input_type": "float16"},
    ],
)
def test_arithmetic_that_overflows_the_input_is_refused(arithmetic: Any) -> None:
    with pytest.raises(UsageError, match=r"scale, mean and std make inputs beyond the .* of float"):
        Contract(color="gray", crop=8, **arithmetic)


def test_pixels_as_they_are_fit_into_float16() -> None:
    assert Contract(color="gray", crop=8, mean=(0.0,), std=(1.0,), scale=1.0, input_type="float16").scale == 1
