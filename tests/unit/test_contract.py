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


def test_a_contract_survives_its_json() -> None:
    assert Contract.from_json(RGB.to_json(), "model.onnx") == RGB


def test_the_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    canonical = json.dumps(msgspec.to_builtins(RGB), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert RGB.fingerprint == hashlib.sha256(canonical.encode()).hexdigest()


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
