"""The files of Transformers and timm, each against the contract that its library's rules give, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import InputError
from alexdeploy.preprocessor_config import parse_preprocessor_config
from alexdeploy.recipe import load_contract

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMAL = {"image_mean": [*MEAN], "image_std": [*STD], "resample": 2}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}


def _rgb(**fields: Any) -> Contract:
    return Contract(**{"color": "rgb", "mean": MEAN, "std": STD, **fields})


def _parse(content: Any) -> Contract:
    return parse_preprocessor_config(json.dumps(content), "x.json")


TRANSFORMERS: dict[str, tuple[dict[str, Any], Contract]] = {
    "ViT": (
        {"size": {"height": 224, "width": 200}, "do_convert_rgb": None, "processor_class": "X", **NORMAL},
        _rgb(resize=(224, 200)),
    ),
    "ViT, old": ({"size": 224, "do_normalize": True, **NORMAL}, _rgb(resize=(224, 224))),
    "DeiT": (
        {"size": 256, "crop_size": 224, **NORMAL, "resample": 3},
        _rgb(resize=(256, 256), crop=224, interpolation="bicubic"),
    ),
    "Beit": (
        {"size": 256, "crop_size": 224, "do_center_crop": False, "reduce_labels": True, **NORMAL},
        _rgb(resize=(256, 256)),
    ),
    "CLIP": ({**CLIP, **NORMAL, "resample": 1}, _rgb(resize=224, crop=224, interpolation="lanczos")),
    "CLIP, no crop size": ({"size": 224, **NORMAL}, _rgb(resize=224, crop=224)),
    "ConvNext": ({"size": 224, "crop_pct": 0.875, **NORMAL}, _rgb(resize=256, crop=224)),
    "ConvNext, default share": (
        {"size": {"shortest_edge": 192}, "crop_pct": None, **NORMAL},
        _rgb(resize=219, crop=192),
    ),
    "ConvNext, large": ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, **NORMAL}, _rgb(resize=(384, 384))),
    "Levit": ({"size": {"shortest_edge": 224}, "crop_size": 224, **NORMAL}, _rgb(resize=256, crop=224)),
    "PoolFormer": ({"size": 224, "crop_pct": 0.9, "crop_size": 224, **NORMAL}, _rgb(resize=248, crop=224)),
    "MobileNetV2": ({**CLIP, "size": {"shortest_edge": 256}, **NORMAL}, _rgb(resize=256, crop=224)),
    "MobileViT": (
        {
            "size": 288,
            "crop_size": 256,
            "do_flip_channel_order": True,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
        },
        Contract(color="bgr", resize=288, crop=256, mean=(0.0,) * 3, std=(1.0,) * 3),
    ),
    "EfficientNet": (
        {"size": {"height": 260, "width": 260}, "include_top": True, "do_center_crop": False, **HALF, "resample": 0},
        _rgb(resize=(260, 260), interpolation="nearest", mean=(0.5,) * 3, std=(0.25,) * 3),  # divided twice
    ),
    "EfficientNet, offset": (
        {"size": 260, "include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5, **HALF, "resample": 2},
        _rgb(resize=(260, 260), scale=127.5, mean=(1.5,) * 3, std=(0.5,) * 3),  # x/127.5 - 1, less 0.5, over 0.5
    ),
    "Siglip, no rescaling": ({"size": 64, "do_rescale": False, **NORMAL}, _rgb(resize=(64, 64), scale=1.0)),
    "Bit, no normalisation": (
        {**CLIP, "do_normalize": False, "resample": 2},
        _rgb(resize=224, crop=224, mean=(0.0,) * 3, std=(1.0,) * 3),
    ),
    "Bit, no resizing": ({"do_resize": False, "crop_size": 96, **NORMAL}, _rgb(crop=96)),
    "ViT, grey": (
        {"size": 28, "image_mean": [0.5], "image_std": [0.5], "resample": 2},
        Contract(color="gray", resize=(28, 28), mean=(0.5,), std=(0.5,)),
    ),
    "ViT, one number": (
        {"size": 28, "image_mean": 0.5, "image_std": 1, "resample": 2},
        _rgb(resize=(28, 28), mean=(0.5,) * 3, std=(1.0,) * 3),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_file_of_transformers_is_read_by_the_rules_of_its_processor(name: str) -> None:
    content, expected = TRANSFORMERS[name]
    kind = name.partition(",")[0]
    assert _parse({"image_processor_type": f"{kind}ImageProcessor", **content}) == expected
    assert _parse({"feature_extractor_type": f"{kind}FeatureExtractor", **content}) == expected


def test_a_fast_processor_resizes_as_torchvision_does() -> None:
    content = {"image_processor_type": "BitImageProcessorFast", **CLIP, **NORMAL, "data_format": "channels_first"}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    planes = v2.functional.resize(v2.functional.pil_to_tensor(image), [224], InterpolationMode.BILINEAR, antialias=True)
    pixels = v2.functional.center_crop(planes, [224, 224]).float() / 255
    expected = v2.functional.normalize(pixels, [*MEAN], [*STD]).numpy()
    np.testing.assert_allclose(preprocess(image, _parse(content)), expected, rtol=0, atol=1e-5)


TIMM = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": MEAN, "std": STD}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, _rgb(resize=248, crop=224, interpolation="bicubic")),  # floor(224 / 0.9)
        ({"crop_mode": "squash"}, _rgb(resize=(248, 248), crop=224, interpolation="bicubic")),
        (
            {"crop_mode": "squash", "crop_pct": 1.0, "input_size": [3, 60, 40]},
            _rgb(resize=(60, 40), crop=(60, 40), interpolation="bicubic"),
        ),
        ({"crop_pct": None, "interpolation": "bilinear", "first_conv": None}, _rgb(resize=256, crop=224)),
        ({"test_input_size": [3, 288, 288], "pool_size": [7, 7]}, _rgb(resize=248, crop=224, interpolation="bicubic")),
        (
            {"input_size": [1, 28, 28], "crop_pct": 1, "mean": [0.5], "std": [0.5]},
            Contract(color="gray", resize=28, crop=28, mean=(0.5,), std=(0.5,), interpolation="bicubic"),
        ),
    ],
)
def test_a_file_of_timm_is_read_by_its_rules(changes: dict[str, Any], expected: Contract) -> None:
    config = {**TIMM, **changes}
    assert _parse(config) == expected
    assert _parse({"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": config}) == expected


def test_the_file_of_timm_makes_the_input_of_timms_pipeline() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    timms = v2.Compose(  # transforms_imagenet_eval of timm 1.0, for crop_mode center
        [
            *(v2.Resize(248, InterpolationMode.BICUBIC), v2.CenterCrop((224, 224))),
            *(v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)),
        ]
    )
    np.testing.assert_allclose(preprocess(image, _parse(TIMM)), timms(image).numpy(), rtol=0, atol=1e-5)


VIT = {"image_processor_type": "ViTImageProcessor", "size": 224, **NORMAL}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {**VIT, "image_processor_type": "PerceiverImageProcessor"},
            "image_processor_type: 'Perceiver.*known are Beit, ",
        ),
        ({**VIT, "image_processor_type": None}, "image_processor_type: it is missing; known are Beit"),
        ({**VIT, "do_pad": True}, "do_pad: this key is not known, and may change the images"),
        ({**VIT, "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map: this key is not known"),
        ({**VIT, "do_center_crop": True}, "do_center_crop: ViT processors have no centre crop"),
        ({**VIT, "size": {"longest_edge": 224}}, "size: expected a number, height and width.*; found longest_edge"),
        ({**VIT, "size": {"shortest_edge": 224}}, "size: a shorter side leaves the size open"),
        ({**VIT, "size": "224"}, r"int.*str.*size"),
        ({**VIT, "resample": 7}, "resample: expected Pillow's number of a filter, 0 to 5; found 7"),
        ({**VIT, "image_processor_type": "ViTImageProcessorFast", "resample": 0}, r"resample: 0 \(nearest\) differs"),
        ({**VIT, "image_mean": None}, "image_mean: it is missing"),
        ({**VIT, "image_std": [0.5]}, "mean and std need 3 values each"),
        (
            {**VIT, "image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True},
            "rescale_offset: .*1/255",
        ),
        ({**VIT, "data_format": "channels_last"}, "data_format: 'channels_last' is not known"),
        ({**TIMM, "crop_mode": "border"}, "crop_mode: 'border' cannot be expressed; 'center' and 'squash' can"),
        ({**TIMM, "input_size": [3, 224, 192]}, "crop_mode: 'center' for an input that is not square"),
        ({**TIMM, "interpolation": "random"}, "interpolation: 'random' is none of nearest, lanczos"),
        ({**TIMM, "crop_pct": 0}, "crop_pct: expected 0.01 to 1"),
        (
            {"model_type": "vit", "hidden_size": 768},
            "expected preprocessor_config.json .* keys model_type, hidden_size",
        ),
        ([1, 2], "not a JSON file with preprocessing"),
    ],
)
def test_what_a_contract_cannot_express_is_refused_by_key(content: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^x.json: .*{complaint}") as refused:
        _parse(content)
    assert "\n" not in str(refused.value)


def test_it_is_a_contract_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(VIT).encode())
    assert load_contract(str(path)) == _rgb(resize=(224, 224))
    path.write_bytes(json.dumps(VIT).encode("utf-16"))
    with pytest.raises(InputError, match="its text is not UTF-8; save it as UTF-8"):
        load_contract(str(path))
    path.write_text("no JSON")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: not a JSON file with preprocessing"):
        load_contract(str(path))
    with pytest.raises(InputError, match=r"absent\.json: no such recipe file"):
        load_contract(str(tmp_path / "absent.json"))
